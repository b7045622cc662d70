//! Lines that each hold the hash of the one before.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};

use super::Target;

/// Bytes of a line; a longer one is no line of ours.
const MAX_LINE: usize = 64 * 1024;
/// What stands in the place of a hash where nothing came before.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The field that holds it.
const PREVIOUS: &str = "previous";

/// An open log.
pub(super) struct Log {
    target: Target,
    file: Option<File>,
    /// The hash of the line written last, for a file that is begun anew, and for standard output.
    last: String,
}

impl Log {
    pub(super) fn open(target: Target) -> Result<Self, String> {
        let file = match &target {
            Target::Stdout => None,
            Target::File(path) => {
                let failed = |error| format!("cannot open the audit log {}: {error}", path.display());
                Some(open(path).map_err(failed)?)
            }
        };
        Ok(Self { target, file, last: NOTHING.to_owned() })
    }

    /// Writes a line with the hash of the one before.
    pub(super) fn append(&mut self, mut line: Map<String, Value>) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            line.insert(PREVIOUS.to_owned(), Value::from(&*self.last));
            let text = Value::Object(line).to_string();
            self.last = hash(text.as_bytes());
            return writeln!(io::stdout().lock(), "{text}");
        };
        // Another process, the one before or after this, may write at the same time. A device has no lock.
        let locked = flock(&*file, FlockOperation::LockExclusive).is_ok();
        let written = append(file, line, &mut self.last);
        if locked {
            let _ = flock(&*file, FlockOperation::Unlock);
        }
        written
    }

    pub(super) fn reopen(&mut self) {
        let Target::File(path) = &self.target else { return };
        match open(path) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                tracing::error!(
                    "cannot open the audit log {} anew: {error}; the old file stays in use",
                    path.display()
                );
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
}

fn append(file: &mut File, mut line: Map<String, Value>, last: &mut String) -> io::Result<()> {
    let torn = match last_line(file)? {
        Some(before) => {
            *last = hash(&before);
            !ends_a_line(file)?
        }
        None => false,
    };
    line.insert(PREVIOUS.to_owned(), Value::from(&**last));
    let text = Value::Object(line).to_string();
    // A line that a full disk cut short ends here; it stays in the chain as what it is.
    let whole = if torn { format!("\n{text}\n") } else { format!("{text}\n") };
    file.write_all(whole.as_bytes())?;
    *last = hash(text.as_bytes());
    Ok(())
}

/// The last line of a file, without its end.
fn last_line(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(MAX_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(MAX_LINE as u64).read_to_end(&mut tail)?;
    let text = tail.strip_suffix(b"\n").unwrap_or(&tail);
    if text.is_empty() {
        return Ok(None);
    }
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(Some(text[start..].to_vec()))
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
}

fn hash(line: &[u8]) -> String {
    let mut text = String::with_capacity(NOTHING.len());
    for byte in digest(&SHA256, line).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What a check of a log found to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Lines.
    pub lines: u64,
    /// The hash that the first line holds: of nothing, or of the last line of the file before.
    pub first: String,
    /// The hash of the last line: kept elsewhere, it shows later whether the end is still there.
    pub last: String,
}

impl Verified {
    /// Whether nothing came before the first line.
    pub fn is_from_the_start(&self) -> bool {
        self.first == NOTHING
    }
}

/// Checks files that follow one another, the oldest first. An error names the file and the line where the chain breaks.
pub fn verify(files: &[PathBuf]) -> Result<Verified, String> {
    let mut so_far: Option<Verified> = None;
    for path in files {
        let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let mut reader = BufReader::new(file);
        for number in 1.. {
            let at = |what: &str| format!("{}:{number}: {what}", path.display());
            let mut line = Vec::new();
            let read = Read::by_ref(&mut reader).take(MAX_LINE as u64).read_until(b'\n', &mut line);
            if read.map_err(|error| at(&error.to_string()))? == 0 {
                break;
            }
            let Some(text) = line.strip_suffix(b"\n") else {
                return Err(at("the line does not end: it was cut short, or is longer than a line can be"));
            };
            so_far = Some(link(so_far, text).map_err(|what| at(&what))?);
        }
    }
    so_far.ok_or_else(|| "there is no line".to_owned())
}

fn link(before: Option<Verified>, line: &[u8]) -> Result<Verified, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("this is no JSON: {error}"))?;
    let Some(previous) = value[PREVIOUS].as_str().filter(|hash| hash.len() == NOTHING.len()) else {
        return Err("there is no hash of the line before".to_owned());
    };
    if let Some(before) = &before
        && previous != before.last
    {
        return Err("the line before is not the one that this one was written after: \
                    a line was changed, taken out or put in"
            .to_owned());
    }
    let (lines, first) =
        before.map_or_else(|| (0, previous.to_owned()), |before| (before.lines, before.first));
    Ok(Verified { lines: lines + 1, first, last: hash(line) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn line(text: &str) -> Map<String, Value> {
        let Value::Object(line) = json!({"action": text}) else { unreachable!() };
        line
    }

    fn log_of(path: &Path, texts: &[&str]) -> Log {
        let mut log = Log::open(Target::File(path.to_owned())).unwrap();
        for text in texts {
            log.append(line(text)).unwrap();
        }
        log
    }

    #[test]
    fn what_was_not_touched_holds_together() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let mut log = log_of(&path, &["a", "b"]);
        // Another process goes on where this one is, and this one where that one was.
        log_of(&path, &["c"]);
        log.append(line("d")).unwrap();
        let whole = verify(std::slice::from_ref(&path)).unwrap();
        assert_eq!((whole.lines, whole.is_from_the_start()), (4, true));

        fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.append(line("e")).unwrap();
        let second = verify(std::slice::from_ref(&path)).unwrap();
        assert_eq!((second.first, second.lines), (whole.last, 1));
        assert_eq!(verify(&[moved.clone(), path.clone()]).unwrap().lines, 5);
        assert!(verify(&[path, moved]).is_err());
    }

    #[test]
    fn every_kind_of_tampering_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        log_of(&path, &["a", "b", "c", "d"]);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let check = |kept: &[&str]| {
            fs::write(&path, kept.join("\n") + "\n").unwrap();
            verify(std::slice::from_ref(&path))
        };
        assert_eq!(check(&lines).unwrap().lines, 4);
        let changed = lines[1].replace("\"b\"", "\"x\"");
        let cases: [&[&str]; 4] = [
            &[lines[0], &changed, lines[2], lines[3]],
            &[lines[0], lines[2], lines[3]],
            &[lines[0], lines[2], lines[1], lines[3]],
            &[lines[0], lines[1], lines[1], lines[2]],
        ];
        for case in cases {
            let error = check(case).unwrap_err();
            assert!(error.contains("taken out or put in") && error.contains("audit:"), "{error}");
        }
        // The end is the one thing that needs a hash kept elsewhere, and so does the beginning.
        assert_ne!(check(&lines[..3]).unwrap().last, check(&lines).unwrap().last);
        assert!(!check(&lines[1..]).unwrap().is_from_the_start());
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert!(verify(std::slice::from_ref(&path)).unwrap_err().contains("cut short"));
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        log_of(&path, &["a"]);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"action\":\"b")).unwrap();
        log_of(&path, &["c"]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(verify(std::slice::from_ref(&path)).unwrap_err().contains(":2: this is no JSON"));
    }
}
