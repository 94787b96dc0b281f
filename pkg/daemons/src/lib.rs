//! Composes the roles of the rkube process out of components, in dependency order.
