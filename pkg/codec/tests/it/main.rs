//! The codecs from outside: upstream's golden objects, bodies as clients send them, hostile input.

mod bodies;
mod fuzz;
mod golden;
mod hostile;
mod round_trip;
