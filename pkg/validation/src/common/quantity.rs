//! Quantities as they stand in objects.
//!
//! Objects are canonicalized when they are decoded, so an unreadable quantity cannot come from a client; it
//! counts as zero here.

use std::cmp::Ordering;

use rkube_api::meta::pkg::api::resource::Quantity;
pub(crate) use rkube_apimachinery::quantity::Quantity as Amount;

pub(crate) fn parse(text: &str) -> Option<Amount> {
    Amount::parse(text).ok()
}

pub(crate) fn amount(quantity: &Quantity) -> Amount {
    parse(&quantity.0).unwrap_or_else(Amount::zero)
}

/// The text that Kubernetes would write for it.
pub(crate) fn canonical(quantity: &Quantity) -> String {
    amount(quantity).to_string()
}

pub(crate) fn compare(left: &Quantity, right: &Quantity) -> Ordering {
    amount(left).cmp(&amount(right))
}

pub(crate) fn is_negative(quantity: &Quantity) -> bool {
    amount(quantity).is_negative()
}

pub(crate) fn is_positive(quantity: &Quantity) -> bool {
    let amount = amount(quantity);
    !amount.is_negative() && !amount.is_zero()
}

pub(crate) fn sum(left: &Amount, right: &Amount) -> Amount {
    let mut sum = left.clone();
    sum += right;
    sum
}
