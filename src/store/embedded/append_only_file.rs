//! Checks the files of an append-only file before Redis loads them, and cuts off an unfinished end.
//!
//! An append-only file is a sequence of commands, each a RESP array of bulk strings. Redis appends to it, so a crash or a
//! power cut can leave a command or a transaction at its end that is not complete: that alone may be cut off. Everything
//! else that is not a command is damage, and may have acknowledged writes behind it. `redis-check-aof --fix` makes no such
//! difference: it cuts a file off at the first byte that it cannot read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest bulk string that Redis accepts (`proto-max-bulk-len`), in bytes.
const BULK_BYTES_MAX: u64 = 512 << 20;
/// The longest annotation that Redis reads, in bytes.
const ANNOTATION_BYTES_MAX: usize = 1024;
/// More digits than any count or length has.
const DIGITS_MAX: usize = 10;
/// No command has a longer name; longer first arguments are not kept.
const NAME_BYTES_MAX: u64 = 32;
/// The commands without arguments that change data, and those around a transaction.
const LONE_COMMANDS: [&[u8]; 4] = [b"MULTI", b"EXEC", b"FLUSHALL", b"FLUSHDB"];
/// How much is read at once.
pub(super) const READ_BYTES: usize = 64 << 10;
/// More copies of ends that were cut off at the same byte of the same file than anybody keeps.
const COPIES_MAX: u32 = 1000;

/// How a file ends that is otherwise sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a complete command.
    Whole,
    /// With a command or a transaction that is not complete.
    Unfinished {
        /// Where that one starts: the length of what is complete.
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
        /// Where, if that is known.
        offset: Option<u64>,
        /// What is there.
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
/// If it cannot be read, or is damaged anywhere but by an unfinished end.
pub(super) fn check_commands(path: &Path) -> Result<Ending, Fault> {
    check_commands_of(File::open(path)?)
}

fn check_commands_of(content: impl Read + Seek) -> Result<Ending, Fault> {
    let input = BufReader::with_capacity(READ_BYTES, content);
    let mut scanner = Scanner { input, offset: 0, argument: 0 };
    // The first byte of what is not known to be complete: the open transaction, or else the next command.
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
                return Err(damage(start, "a transaction ends that has not started"));
            }
            Ok(Some(Command::Exec)) => is_in_transaction = false,
            Ok(Some(Command::Other)) => {}
            Err(Stop::End { argument }) => {
                // A damaged length can make an argument of the rest of the file, with all the commands in it.
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

/// One command, as far as the end of transactions depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Multi,
    Exec,
    Other,
}

/// Why a command was not read to its end.
enum Stop {
    /// The file ended before it, in or before the argument that starts there.
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
    /// How many bytes were read.
    offset: u64,
    /// Where the argument starts that is being read, or the command before its first argument.
    argument: u64,
}

impl<R: Read> Scanner<R> {
    /// The next command, or `None` at the end of the file.
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
            // A damaged name of a transaction's end must not make the transaction one that never ends.
            name if arguments == 1 && !LONE_COMMANDS.contains(&name) => {
                Err(Stop::Fault(damage(start, "a command that Redis does not write")))
            }
            b"MULTI" => Ok(Some(Command::Multi)),
            b"EXEC" => Ok(Some(Command::Exec)),
            _ => Ok(Some(Command::Other)),
        }
    }

    /// A line that starts with `#`: Redis writes the time there if it is asked to.
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

    /// A line of a prefix and a number.
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

/// Whether another command follows within the one that starts at `start`: `\r\n*<digits>\r\n$<digits>\r\n`. The values that
/// the scripts store are JSON, numbers and identifiers, none of which can contain that.
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

/// Cuts a file off at `offset`. What is cut off is first copied to a new file beside it, whose path is returned: if the copy
/// cannot be made, nothing is cut.
pub(super) fn cut_off(path: &Path, offset: u64) -> io::Result<PathBuf> {
    let mut file = File::options().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let (copy_path, copy) = new_copy(path, offset)?;
    let copied = io::copy(&mut file, &mut &copy).and_then(|_| copy.sync_all()).and_then(|()| sync_folder(&copy_path));
    if let Err(error) = copied {
        // Half of a copy would mislead.
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

/// Has the operating system write the folder's entries to the disk, too.
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

    /// Commands and transactions, and where each of them ends. The last one is a command, or a transaction.
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
    fn a_file_that_is_cut_anywhere_ends_with_its_last_complete_write() {
        let (content, ends) = commands(true);
        for length in 0..=content.len() {
            let complete = *ends.iter().rfind(|&&end| end <= length).expect("the start");
            let expected =
                if complete == length { Ending::Whole } else { Ending::Unfinished { offset: complete as u64 } };
            let found = check(&content[..length]).expect("a file that is only cut");
            assert_eq!(found, expected, "cut at {length}");
        }
    }

    /// One damage that may look like an unfinished end is at that end: in the last write.
    #[test]
    fn damage_before_the_last_write_is_never_taken_for_an_unfinished_end() {
        for ends_with_a_command in [false, true] {
            let (content, ends) = commands(ends_with_a_command);
            expect_nothing_complete_is_cut_off(&content, &ends);
        }
    }

    fn expect_nothing_complete_is_cut_off(content: &[u8], ends: &[usize]) {
        let last = ends[ends.len() - 2] as u64;
        let mut refused = 0;
        let mut expect = |damaged: &[u8], how: &str| match check(damaged) {
            Ok(Ending::Whole) => {}
            Ok(Ending::Unfinished { offset }) => assert_eq!(offset, last, "{how}"),
            Err(Fault::Damage { offset: Some(_), .. }) => refused += 1,
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
                    // The part of the last write that is left may be all that there is of it.
                    expect_no_less(&damaged, (content, ends), &format!("{length} bytes gone from {at}"));
                }
            }
        }
        assert!(refused > content.len() * 4, "{refused}");
    }

    /// With bytes missing, what is complete ends elsewhere: no complete write after it is cut off.
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
    fn what_is_left_of_a_command_is_no_unfinished_end_if_others_follow() {
        let (mut content, _) = commands(false);
        // The length of HSET's first value, in the first transaction, reaches beyond the end of the file.
        let at = content.windows(4).position(|bytes| bytes == b"$5\r\n").expect("a length") + 1;
        let at = at + content[at..].windows(4).position(|bytes| bytes == b"$5\r\n").expect("a length");
        content.splice(at..=at + 1, *b"$5000");
        let found = check(&content);
        assert!(
            matches!(&found, Err(Fault::Damage { offset: Some(offset), what }) if *offset == at as u64 && what.contains("across")),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_cut_off_is_kept_each_time() {
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
