//! The journal: every measurement as it is taken, a line each, so that a run that is killed loses only the one in flight.
//!
//! ```text
//! {"run": {…}}                                     what is tuned, on what: a run goes on only under the same
//! {"entry": {"weight": …}}                         an entry begins
//! {"admit": [{"family": …}, "sound"]}              a candidate was compared with the reference
//! {"sample": [{"family": …}, {"seconds": …, "spent": …}]}
//! {"done": true}                                   the run came to its end
//! ```
//!
//! A [`Recorded`] bench serves what the journal holds before it measures. The search decides by what it is served alone, so
//! it takes the same way again and goes on where it was cut. Always holds: a line is written whole before the next
//! measurement begins; a last line that is not whole is cut off.

use crate::key::Key;
use crate::measure::{Bench, Sample, Verdict};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<R> {
    /// The head.
    Run(R),
    /// What follows is about this entry.
    Entry(Key),
    /// A candidate was made and compared.
    Admit(Schedule, Verdict),
    /// A candidate was timed.
    Sample(Schedule, Sample),
    /// The run came to its end.
    Done(bool),
}

/// What a journal holds of one entry, in the order of each candidate's own samples.
#[derive(Clone, Debug, Default)]
struct Record {
    verdicts: BTreeMap<Schedule, Verdict>,
    samples: BTreeMap<Schedule, VecDeque<Sample>>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    records: BTreeMap<Key, Record>,
    /// Samples that were read from the file.
    found: usize,
    /// The entry of the last line.
    entry: Option<Key>,
}

fn fault(path: &Path, verb: &str, error: &std::io::Error) -> Error {
    Error::invalid(format!("{}: cannot be {verb}: {error}", path.display()))
}

impl Journal {
    /// Starts a journal with a head; an old file is replaced.
    pub fn create<R: Serialize>(path: &Path, run: &R) -> Result<Journal> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|error| fault(path, "written", &error))?;
        let mut journal = Journal { file, path: path.to_path_buf(), records: BTreeMap::new(), found: 0, entry: None };
        journal.line(&Line::Run(run))?;
        Ok(journal)
    }

    /// Opens a journal to go on, with its head. `None` where there is no file, or one without a whole head.
    pub fn open<R: Serialize + DeserializeOwned>(path: &Path) -> Result<Option<(Journal, R)>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(path, "opened", &error)),
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| fault(path, "read", &error))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let (mut records, mut entry, mut head, mut found) = (BTreeMap::<Key, Record>::new(), None, None, 0);
        for (number, line) in text[..whole].lines().enumerate() {
            let line: Line<R> = serde_json::from_str(line)
                .map_err(|error| Error::invalid(format!("{}: line {}: {error}", path.display(), number + 1)))?;
            let at = |entry: &Option<Key>| {
                entry
                    .clone()
                    .ok_or_else(|| Error::invalid(format!("{}: line {}: before any entry", path.display(), number + 1)))
            };
            match line {
                Line::Run(run) => head = Some(run),
                Line::Entry(key) => entry = Some(key),
                Line::Admit(schedule, verdict) => {
                    records.entry(at(&entry)?).or_default().verdicts.insert(schedule, verdict);
                }
                Line::Sample(schedule, sample) => {
                    found += 1;
                    let record = records.entry(at(&entry)?).or_default();
                    record.samples.entry(schedule).or_default().push_back(sample.rounded());
                }
                Line::Done(_) => {}
            }
        }
        let Some(head) = head else { return Ok(None) };
        file.set_len(whole as u64).map_err(|error| fault(path, "cut", &error))?;
        file.seek(SeekFrom::End(0)).map_err(|error| fault(path, "read", &error))?;
        Ok(Some((Journal { file, path: path.to_path_buf(), records, found, entry }, head)))
    }

    /// Whether a file is the journal of a run that did not come to its end.
    pub fn unfinished(path: &Path) -> bool {
        std::fs::read_to_string(path).is_ok_and(|text| !text.is_empty() && !text.ends_with("{\"done\":true}\n"))
    }

    /// Samples that the file held when it was opened.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Notes that the run came to its end.
    pub fn finish(&mut self) -> Result<()> {
        self.line(&Line::<()>::Done(true))
    }

    /// A bench for an entry that serves what is recorded before it measures.
    pub fn record<'a>(&'a mut self, key: &Key, bench: &'a mut dyn Bench) -> Recorded<'a> {
        let record = self.records.remove(key).unwrap_or_default();
        Recorded { journal: self, key: key.clone(), bench, record }
    }

    fn line<R: Serialize>(&mut self, line: &Line<R>) -> Result<()> {
        let mut text = serde_json::to_string(line)
            .map_err(|error| Error::Bug { message: error.to_string(), text: "a line of a journal".into() })?;
        text.push('\n');
        // One write: the line is there whole, or it is the last and will be cut off.
        self.file.write_all(text.as_bytes()).map_err(|error| fault(&self.path, "written", &error))
    }

    fn about(&mut self, key: &Key) -> Result<()> {
        if self.entry.as_ref() != Some(key) {
            self.line(&Line::<()>::Entry(key.clone()))?;
            self.entry = Some(key.clone());
        }
        Ok(())
    }
}

/// A bench whose measurements are kept, and served again. What it does not come to is left for the entry's next one.
pub struct Recorded<'a> {
    journal: &'a mut Journal,
    key: Key,
    bench: &'a mut dyn Bench,
    record: Record,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.journal.records.insert(self.key.clone(), std::mem::take(&mut self.record));
    }
}

impl Bench for Recorded<'_> {
    fn admit(&mut self, schedule: &Schedule) -> Result<Verdict> {
        if let Some(verdict) = self.record.verdicts.get(schedule) {
            return Ok(verdict.clone());
        }
        let verdict = self.bench.admit(schedule)?;
        self.journal.about(&self.key)?;
        self.journal.line(&Line::<()>::Admit(*schedule, verdict.clone()))?;
        self.record.verdicts.insert(*schedule, verdict.clone());
        Ok(verdict)
    }

    fn sample(&mut self, schedule: &Schedule, ordinal: u64) -> Result<Sample> {
        if let Some(sample) = self.record.samples.get_mut(schedule).and_then(VecDeque::pop_front) {
            return Ok(sample);
        }
        let sample = self.bench.sample(schedule, ordinal)?.rounded();
        self.journal.about(&self.key)?;
        self.journal.line(&Line::<()>::Sample(*schedule, sample))?;
        Ok(sample)
    }
}
