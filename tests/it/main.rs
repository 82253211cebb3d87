//! The integration tests, in one binary: what can be seen from outside the library.
//!
//! Each module is one subject. A test that needs a tool which is not there fails, and names the
//! command that installs it.

#[cfg(test)]
mod api;
#[cfg(test)]
mod architecture;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod support;
#[cfg(test)]
mod vectors;
