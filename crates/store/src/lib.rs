//! The database behind one transaction seam.
