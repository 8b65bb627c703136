//! Reading Matrix Market files (<https://math.nist.gov/MatrixMarket/formats.html>).
//!
//! The parser is that of `nalgebra-sparse`, which counts the entries, knows the ranges of indices and
//! expands symmetric files. It cannot handle some files, though: an index of more than 64 bits makes it
//! panic, and a real matrix whose entries are integers is refused. So the parts of a file on which that
//! depends are checked first, which also gives better messages: the header, the line of sizes, and that
//! the first two words of each entry are indices.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nalgebra_sparse::io::{MatrixMarketError, load_coo_from_matrix_market_str};
use nalgebra_sparse::{CooMatrix, CsrMatrix};

use crate::failure::Failure;
use crate::matrix::Csr;
use crate::system;

/// Reads the matrix of a file, if its system fits into a pool of `limit` MiB.
pub fn read(path: &Path, limit: u64) -> Result<Csr, Failure> {
    let in_file = |problem| Failure::File {
        path: path.into(),
        problem,
    };
    let text = read_text(path).map_err(|error| in_file(error.to_string()))?;
    let header = Header::of(&text).map_err(in_file)?;
    system::check_size(header.rows as u64, header.stored_entries(), limit)?;
    // The sizes decide how much memory is allocated, so they are checked: each row has an entry, on the
    // diagonal, and each entry a line.
    let most = text.len() as u64;
    for (what, number) in [("rows", header.rows.into()), ("entries", header.entries)] {
        if number > most {
            return Err(in_file(format!("too short for {number} {what}")));
        }
    }
    check_indices(&text).map_err(in_file)?;
    let matrix = match header.field {
        Field::Real => load_coo_from_matrix_market_str::<f64>(&text),
        // Read as integers that an f64 can hold exactly; larger ones are refused.
        Field::Integer => load_coo_from_matrix_market_str::<i32>(&text).map(|matrix| {
            let (rows, columns) = (matrix.nrows(), matrix.ncols());
            let (i, j, values) = matrix.disassemble();
            let values = values.into_iter().map(f64::from).collect();
            CooMatrix::try_from_triplets(rows, columns, i, j, values)
                .expect("these indices were in range before")
        }),
    };
    let matrix = matrix.map_err(|error| in_file(one_line(&error)))?;
    if let Some(at) = matrix.values().iter().position(|value| !value.is_finite()) {
        let (row, column) = (matrix.row_indices()[at] + 1, matrix.col_indices()[at] + 1);
        return Err(in_file(format!("entry ({row}, {column}) is not finite")));
    }
    // Entries given several times are added up, as is the custom for assembled matrices.
    let (offsets, columns, values) = CsrMatrix::from(&matrix).disassemble();
    let narrow = |numbers: Vec<usize>| numbers.into_iter().map(|number| number as u32).collect();
    Ok(Csr {
        offsets: narrow(offsets),
        columns: narrow(columns),
        values,
    })
}

/// The content of a regular file. Comments may be in any encoding.
fn read_text(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(other) => String::from_utf8_lossy(other.as_bytes()).into_owned(),
    })
}

enum Field {
    Real,
    Integer,
}

/// What the first lines of a file say.
struct Header {
    field: Field,
    symmetric: bool,
    rows: u32,
    entries: u64,
}

impl Header {
    fn of(text: &str) -> Result<Header, String> {
        let first = text.lines().next().unwrap_or_default().to_ascii_lowercase();
        let words: Vec<&str> = first.split_ascii_whitespace().collect();
        let ["%%matrixmarket", "matrix", format, field, symmetry] = words[..] else {
            return Err("not a Matrix Market file".into());
        };
        if format != "coordinate" {
            return Err(format!(
                "a sparse matrix is needed, and this is an {format}"
            ));
        }
        let field = match field {
            "real" => Field::Real,
            "integer" => Field::Integer,
            _ => {
                return Err(format!(
                    "a real matrix is needed, and this is a {field} one"
                ));
            }
        };
        let (number, sizes) = entry_lines(text)
            .next()
            .ok_or("the file ends before the line of sizes")?;
        let words: Vec<u64> = sizes
            .split_ascii_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| format!("line {number} should have the sizes"))?;
        let [rows, columns, entries] = words[..] else {
            return Err(format!("line {number} should have three sizes"));
        };
        if rows != columns {
            return Err(format!("the matrix is not square: {rows} by {columns}"));
        }
        if rows == 0 {
            return Err("the matrix is empty".into());
        }
        let too_large = |_| format!("{rows} rows are too many");
        Ok(Header {
            field,
            symmetric: symmetry != "general",
            rows: rows.try_into().map_err(too_large)?,
            entries,
        })
    }

    /// Entries when both triangles are stored; the diagonal is counted twice.
    fn stored_entries(&self) -> u64 {
        self.entries
            .saturating_mul(if self.symmetric { 2 } else { 1 })
    }
}

/// The lines that are neither empty nor comments, with their numbers.
fn entry_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().zip(1..);
    lines
        .filter(|(line, _)| !line.starts_with('%') && !line.trim().is_empty())
        .map(|(line, number)| (number, line))
}

/// The parser panics on indices that do not fit into 64 bits.
fn check_indices(text: &str) -> Result<(), String> {
    for (number, line) in entry_lines(text).skip(1) {
        let mut words = line.split_ascii_whitespace();
        for _ in 0..2 {
            let index = words.next().and_then(|word| word.parse::<u32>().ok());
            if index.is_none_or(|index| index == 0) {
                return Err(format!("line {number} is no entry"));
            }
        }
    }
    Ok(())
}

/// The parser's messages have several lines, with a drawing.
fn one_line(error: &MatrixMarketError) -> String {
    let message = error.message();
    let line = message.split("--> ").nth(1).and_then(|rest| {
        let (line, _) = rest.split_once(':')?;
        line.parse::<usize>().ok()
    });
    match line {
        Some(line) => format!("line {line} is no entry"),
        None => message.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}
