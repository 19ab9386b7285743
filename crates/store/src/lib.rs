//! The database behind one transaction seam.

pub mod clusters;
