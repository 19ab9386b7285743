//! A unit that is a process of this machine.
