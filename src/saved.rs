//! A key chain written to a file: to come.
