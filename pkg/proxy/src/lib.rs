//! The service proxy: Services and endpoints to one nftables table.
