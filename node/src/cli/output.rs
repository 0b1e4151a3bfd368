//! Printing, for people or for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::{Map, Value};

use super::failure::Failure;

/// How results are printed: for people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

/// Standard output in one format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Output {
        Output { format }
    }

    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Named facts of one thing: a line each, or one object.
    pub(super) fn facts(self, facts: &[(&str, Value)]) -> Result<(), Failure> {
        if self.is_json() {
            return self.line(&object(facts.iter().cloned()).to_string());
        }
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: String =
            facts.iter().map(|(name, value)| format!("{name:width$}  {}\n", text(value))).collect();
        self.raw(lines.as_bytes())
    }

    /// Things of one kind: a table with these columns, or an object a line.
    pub(super) fn rows(self, columns: &[&str], rows: &[Vec<Value>]) -> Result<(), Failure> {
        if self.is_json() {
            let lines: String = rows
                .iter()
                .map(|row| format!("{}\n", object(columns.iter().copied().zip(row.iter().cloned()))))
                .collect();
            return self.raw(lines.as_bytes());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(columns);
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        table.add_rows(rows.iter().map(|row| row.iter().map(text)));
        let lines: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        self.raw(lines.as_bytes())
    }

    /// One line, at once.
    pub(super) fn line(self, line: &str) -> Result<(), Failure> {
        self.raw(format!("{line}\n").as_bytes())
    }

    pub(super) fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::printing(&error))
    }
}

/// Says something about what is being done, on standard error.
pub(super) fn notice(text: &str) {
    // Where nobody listens, nobody is told.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(super) fn object<'a>(facts: impl Iterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(facts.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// A text, or nothing where it is empty.
pub(super) fn stated(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::String(text.to_owned()) }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
