//! What was used, for whom asks: over which time, in which columns, at what cost.
//!
//! `portcullis usage` and the admin API ask the same things; here they are read and written once.

mod period;
mod rows;
mod sheet;
mod sums;

pub use period::{Period, USUAL};
pub use rows::{MOST_ROWS, Page, RELOAD, ROW, reloads, reloads_told, rows, rows_query};
pub use sheet::{Cell, Format, Sheet, csv_line, grouped, printable};
pub use sums::{Question, Sums, columns, model_as_stored, sums};
