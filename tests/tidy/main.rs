//! Rules of the house, kept by reading the sources.
//!
//! Lists of what is still allowed to break a rule name folders with a number that may only shrink.

mod circles;
mod examples;
mod floors;
mod locks;
mod sizes;
mod sources;
mod words;
