//! Checks the files of an append-only file before Redis loads them, and cuts off an unfinished write at the end.
//!
//! An append-only file is a sequence of commands, each a RESP array of bulk strings. Redis appends to it, so a crash or
//! a power cut can leave an incomplete command or transaction at its end. Only that may be cut off. Everything else
//! that is not a command is damage, and acknowledged writes may follow it. `redis-check-aof --fix` does not distinguish
//! the two: it cuts a file off at the first byte that it cannot read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest bulk string that Redis accepts (`proto-max-bulk-len`), in bytes.
const BULK_BYTES_MAX: u64 = 512 << 20;
/// The longest annotation that Redis reads, in bytes.
const ANNOTATION_BYTES_MAX: usize = 1024;
/// Maximum number of digits that are read of a count or a length. Valid ones have fewer.
const DIGITS_MAX: usize = 10;
/// The longest first argument that is kept as the command's name, in bytes. No command has a longer name.
const NAME_BYTES_MAX: u64 = 32;
/// The commands without arguments that Redis writes: those that change data, and those around a transaction.
const COMMANDS_WITHOUT_ARGUMENTS: [&[u8]; 4] = [b"MULTI", b"EXEC", b"FLUSHALL", b"FLUSHDB"];
/// The size of the read buffer, in bytes.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Maximum number of copies of ends that were cut off at the same byte of the same file.
const COPIES_MAX: u32 = 1000;

/// How an undamaged file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a complete command.
    Whole,
    /// With an incomplete command or transaction.
    Unfinished {
        /// The byte at which it starts, which is the length of the complete part.
        offset: u64,
    },
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// It cannot be read.
    Io(io::Error),
    /// It is damaged.
    Damage {
        /// The byte offset of the damage, if it is known.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
    },
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Checks a file of commands.
///
/// # Errors
/// If the file cannot be read, or has any damage other than an unfinished end.
pub(super) fn check_commands(path: &Path) -> Result<Ending, Fault> {
    check_commands_of(File::open(path)?)
}

fn check_commands_of(content: impl Read + Seek) -> Result<Ending, Fault> {
    let input = BufReader::with_capacity(READ_BYTES, content);
    let mut scanner = Scanner { input, offset: 0, argument: 0 };
    // Where the last complete command or transaction ends.
    let mut offset = 0;
    let mut is_in_transaction = false;
    loop {
        let start = scanner.offset;
        match scanner.command() {
            Ok(None) if is_in_transaction => return Ok(Ending::Unfinished { offset }),
            Ok(None) => return Ok(Ending::Whole),
            Ok(Some(Command::Multi)) if is_in_transaction => {
                return Err(damage(start, "a transaction starts within another one, whose end is missing"));
            }
            Ok(Some(Command::Multi)) => is_in_transaction = true,
            Ok(Some(Command::Exec)) if !is_in_transaction => {
                return Err(damage(start, "a transaction ends without having started"));
            }
            Ok(Some(Command::Exec)) => is_in_transaction = false,
            Ok(Some(Command::Other)) => {}
            Err(Stop::End { argument }) => {
                // A damaged length can turn the rest of the file, with all of its commands, into one argument.
                if has_command_within(&mut scanner.input, start)? {
                    return Err(damage(argument, "a length reaches beyond the end of the file, across other commands"));
                }
                return Ok(Ending::Unfinished { offset: if is_in_transaction { offset } else { start } });
            }
            Err(Stop::Fault(fault)) => return Err(fault),
        }
        if !is_in_transaction {
            offset = scanner.offset;
        }
    }
}

fn damage(offset: u64, what: &str) -> Fault {
    Fault::Damage { offset: Some(offset), what: what.to_owned() }
}

/// A command, reduced to what matters for the bounds of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Multi,
    Exec,
    Other,
}

/// Why a command could not be read completely.
enum Stop {
    /// The file ended in or before the argument that starts at byte `argument`.
    End {
        argument: u64,
    },
    Fault(Fault),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Fault(Fault::Io(error))
    }
}

/// Reads commands, in bounded memory.
struct Scanner<R> {
    input: BufReader<R>,
    /// The number of bytes read so far.
    offset: u64,
    /// Where the current argument starts; before the first argument, where the command starts.
    argument: u64,
}

impl<R: Read> Scanner<R> {
    /// Reads the next command. Returns `None` at the end of the file.
    fn command(&mut self) -> Result<Option<Command>, Stop> {
        let start = self.offset;
        self.argument = start;
        match self.peek()? {
            None => return Ok(None),
            Some(b'#') => {
                self.annotation()?;
                return Ok(Some(Command::Other));
            }
            Some(_) => {}
        }
        let arguments = self.number(b'*')?;
        if arguments == 0 {
            return Err(Stop::Fault(damage(start, "a command without a name")));
        }
        let mut name = Vec::new();
        for number in 0..arguments {
            self.argument = self.offset;
            let length = self.number(b'$')?;
            if length > BULK_BYTES_MAX {
                return Err(Stop::Fault(damage(self.argument, "an argument is longer than Redis allows")));
            }
            let kept = (number == 0 && length <= NAME_BYTES_MAX).then_some(&mut name);
            self.content(length, kept)?;
            self.expect(b'\r')?;
            self.expect(b'\n')?;
        }
        name.make_ascii_uppercase();
        match name.as_slice() {
            // An EXEC with a damaged name is damage. Otherwise its transaction would look unfinished.
            name if arguments == 1 && !COMMANDS_WITHOUT_ARGUMENTS.contains(&name) => {
                Err(Stop::Fault(damage(start, "a command that Redis does not write")))
            }
            b"MULTI" => Ok(Some(Command::Multi)),
            b"EXEC" => Ok(Some(Command::Exec)),
            _ => Ok(Some(Command::Other)),
        }
    }

    /// Reads a line that starts with `#`. Redis can be configured to write the time in such lines.
    fn annotation(&mut self) -> Result<(), Stop> {
        let start = self.offset;
        for _ in 0..ANNOTATION_BYTES_MAX {
            match self.byte()? {
                b'\r' => return self.expect(b'\n'),
                byte if byte.is_ascii_control() => break,
                _ => {}
            }
        }
        Err(Stop::Fault(damage(start, "an annotation that does not end")))
    }

    /// Reads a line of a prefix and a number.
    fn number(&mut self, prefix: u8) -> Result<u64, Stop> {
        self.expect(prefix)?;
        let (mut number, mut digits) = (0, 0);
        loop {
            let at = self.offset;
            match self.byte()? {
                digit @ b'0'..=b'9' if digits < DIGITS_MAX => {
                    number = number * 10 + u64::from(digit - b'0');
                    digits += 1;
                }
                b'\r' if digits > 0 => {
                    self.expect(b'\n')?;
                    return Ok(number);
                }
                byte => return Err(Stop::Fault(damage(at, &format!("{} where a number is expected", shown(byte))))),
            }
        }
    }

    /// Reads the `length` bytes of an argument, into `kept` if it is given.
    fn content(&mut self, length: u64, mut kept: Option<&mut Vec<u8>>) -> Result<(), Stop> {
        let mut left = length;
        while left > 0 {
            let bytes = self.input.fill_buf()?;
            let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if taken == 0 {
                return Err(Stop::End { argument: self.argument });
            }
            if let Some(kept) = kept.as_deref_mut() {
                kept.extend_from_slice(&bytes[..taken]);
            }
            self.input.consume(taken);
            self.offset += taken as u64;
            left -= taken as u64;
        }
        Ok(())
    }

    fn expect(&mut self, expected: u8) -> Result<(), Stop> {
        let at = self.offset;
        match self.byte()? {
            byte if byte == expected => Ok(()),
            byte => Err(Stop::Fault(damage(at, &format!("{} where {} is expected", shown(byte), shown(expected))))),
        }
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let Some(byte) = self.peek()? else {
            return Err(Stop::End { argument: self.argument });
        };
        self.input.consume(1);
        self.offset += 1;
        Ok(byte)
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }
}

fn shown(byte: u8) -> String {
    format!("'{}'", byte.escape_ascii())
}

/// Whether the bytes from `start` on contain the start of another command: `\r\n*<digits>\r\n$<digits>\r\n`. The
/// scripts store JSON, numbers and identifiers, none of which can contain these bytes.
fn has_command_within(input: &mut (impl BufRead + Seek), start: u64) -> io::Result<bool> {
    input.seek(SeekFrom::Start(start))?;
    let mut seen = 0;
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        for &byte in bytes {
            seen = match (seen, byte) {
                (1, b'\n') => 2,
                (2, b'*') => 3,
                (3 | 4, b'0'..=b'9') => 4,
                (4, b'\r') => 5,
                (5, b'\n') => 6,
                (6, b'$') => 7,
                (7 | 8, b'0'..=b'9') => 8,
                (8, b'\r') => 9,
                (9, b'\n') => return Ok(true),
                (_, b'\r') => 1,
                _ => 0,
            };
        }
        let length = bytes.len();
        input.consume(length);
    }
}

/// Cuts a file off at `offset`. First copies the bytes that it removes to a new file next to it, and returns the path
/// of that copy. If the copy fails, cuts nothing off.
pub(super) fn cut_off(path: &Path, offset: u64) -> io::Result<PathBuf> {
    let mut file = File::options().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let (copy_path, copy) = new_copy(path, offset)?;
    let copied = io::copy(&mut file, &mut &copy).and_then(|_| copy.sync_all()).and_then(|()| sync_folder(&copy_path));
    if let Err(error) = copied {
        // A partial copy could be mistaken for a complete one.
        let _ = std::fs::remove_file(&copy_path);
        return Err(error);
    }
    file.set_len(offset)?;
    file.sync_all()?;
    Ok(copy_path)
}

fn new_copy(path: &Path, offset: u64) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for number in 1..=COPIES_MAX {
        let suffix = if number == 1 { String::new() } else { format!(".{number}") };
        let copy_path = path.with_file_name(format!("{name}.cut-off-at-{offset}{suffix}"));
        match File::options().write(true).create_new(true).mode(0o600).open(&copy_path) {
            Ok(copy) => return Ok((copy_path, copy)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Syncs the directory that has `path`, so the entry of a new file is on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn command(words: &[&str]) -> String {
        let arguments: Vec<_> = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        format!("*{}\r\n{}", words.len(), arguments.concat())
    }

    /// Commands and transactions, and the offset at which each of them ends.
    fn commands(ends_with_a_command: bool) -> (Vec<u8>, Vec<usize>) {
        let transaction = |words: &[&[&str]]| {
            let inner: Vec<_> = words.iter().map(|words| command(words)).collect();
            format!("{}{}{}", command(&["MULTI"]), inner.concat(), command(&["EXEC"]))
        };
        let mut parts = vec![
            command(&["SELECT", "0"]),
            transaction(&[&["HSET", "k", "field", "value"], &["PEXPIREAT", "k", "99999999999999"]]),
            "#TS:1795900000\r\n".to_owned(),
            command(&["SET", "pointer", ""]),
            transaction(&[&["ZADD", "h", "1", "member"], &["DEL", "k"]]),
            transaction(&[&["HSET", "k2", "field", "value", "f2", "[{}]"], &["PEXPIREAT", "k2", "99999999999999"]]),
        ];
        if ends_with_a_command {
            parts.push(command(&["SET", "pointer", "value"]));
        }
        let mut ends = vec![0];
        ends.extend(parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        }));
        (parts.concat().into_bytes(), ends)
    }

    fn check(content: &[u8]) -> Result<Ending, Fault> {
        check_commands_of(io::Cursor::new(content))
    }

    #[test]
    fn truncated_file_ends_after_its_last_complete_write() {
        let (content, ends) = commands(true);
        for length in 0..=content.len() {
            let complete = *ends.iter().rfind(|&&end| end <= length).expect("the start");
            let expected =
                if complete == length { Ending::Whole } else { Ending::Unfinished { offset: complete as u64 } };
            let found = check(&content[..length]).expect("a truncated file is not damaged");
            assert_eq!(found, expected, "cut at {length}");
        }
    }

    /// Only damage in the last write may look like an unfinished end.
    #[test]
    fn damage_before_the_last_write_is_not_an_unfinished_end() {
        for ends_with_a_command in [false, true] {
            let (content, ends) = commands(ends_with_a_command);
            expect_nothing_complete_is_cut_off(&content, &ends);
        }
    }

    fn expect_nothing_complete_is_cut_off(content: &[u8], ends: &[usize]) {
        let last = ends[ends.len() - 2] as u64;
        let mut detected = 0;
        let mut expect = |damaged: &[u8], how: &str| match check(damaged) {
            Ok(Ending::Whole) => {}
            Ok(Ending::Unfinished { offset }) => assert_eq!(offset, last, "{how}"),
            Err(Fault::Damage { offset: Some(_), .. }) => detected += 1,
            Err(fault) => panic!("{how}: {fault:?}"),
        };
        for at in 0..content.len() {
            let mut damaged = content.to_vec();
            for bit in 0..8 {
                damaged[at] = content[at] ^ (1 << bit);
                expect(&damaged, &format!("bit {bit} of byte {at}"));
            }
            for byte in [b'#', b'*', b'$', b'9', b'\r', b'\n', 0] {
                damaged[at] = byte;
                expect(&damaged, &format!("byte {at} made {byte}"));
            }
            for length in [16, 64, 512] {
                damaged = content.to_vec();
                let end = content.len().min(at + length);
                damaged[at..end].fill(0);
                expect(&damaged, &format!("{length} bytes of zeros from {at}"));
                damaged = content.to_vec();
                damaged.drain(at..end);
                if end < content.len() && damaged.len() as u64 > last {
                    // What remains of the last write may be an unfinished end, so only complete writes are checked.
                    expect_no_less(&damaged, (content, ends), &format!("{length} bytes gone from {at}"));
                }
            }
        }
        assert!(detected > content.len() * 4, "{detected}");
    }

    /// Without the removed bytes, writes end at other offsets. No complete write may be in the part that is cut off.
    fn expect_no_less(damaged: &[u8], (content, ends): (&[u8], &[usize]), how: &str) {
        if let Ok(Ending::Unfinished { offset }) = check(damaged) {
            let cut = &damaged[usize::try_from(offset).expect("an offset")..];
            let complete = ends.windows(2).filter(|pair| pair[1] - pair[0] <= cut.len());
            let is_lost =
                |pair: &[usize]| cut.windows(pair[1] - pair[0]).skip(1).any(|part| part == &content[pair[0]..pair[1]]);
            assert!(!complete.into_iter().any(is_lost), "{how}: a complete write would be cut off");
        }
    }

    #[test]
    fn length_beyond_the_end_of_the_file_is_damage_if_commands_follow() {
        let (mut content, _) = commands(false);
        // The length of HSET's first value, in the first transaction, reaches beyond the end of the file.
        let at = content.windows(4).position(|bytes| bytes == b"$5\r\n").expect("a length") + 1;
        let at = at + content[at..].windows(4).position(|bytes| bytes == b"$5\r\n").expect("a length");
        content.splice(at..=at + 1, *b"$5000");
        let found = check(&content);
        let Err(Fault::Damage { offset: Some(offset), what }) = &found else { panic!("{found:?}") };
        assert!(*offset == at as u64 && what.contains("across"), "{found:?}");
    }

    #[test]
    fn each_cut_off_end_is_kept_in_its_own_copy() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("appendonly.aof.1.incr.aof");
        for (end, copy) in [("first", ".cut-off-at-4"), ("second", ".cut-off-at-4.2")] {
            std::fs::write(&path, format!("kept{end}")).expect("a file written");
            let copy = folder.path().join(format!("appendonly.aof.1.incr.aof{copy}"));
            assert_eq!(cut_off(&path, 4).expect("a file cut off"), copy);
            let read = |path| std::fs::read_to_string(path).expect("a file");
            assert_eq!((read(&path), read(&copy)), ("kept".to_owned(), end.to_owned()));
        }
    }
}
