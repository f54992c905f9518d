//! Checks an RDB file, the base of an append-only file, by its checksum.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crc::{CRC_64_REDIS, Crc, Table};

use super::append_only_file::{Fault, READ_BYTES};

/// The size of the checksum at the end of an RDB file, in bytes. The byte before it is `RDB_END`.
const RDB_CHECKSUM_BYTES: usize = 8;
const RDB_END: u8 = 0xff;
/// An RDB file starts with one of these.
const RDB_MAGICS: [&[u8]; 2] = [b"REDIS", b"VALKEY"];
const RDB_MAGIC_BYTES_MAX: u64 = 6;

static RDB_CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

/// Whether a file starts like an RDB file.
pub(super) fn is_rdb(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(RDB_MAGIC_BYTES_MAX).read_to_end(&mut start)?;
    Ok(RDB_MAGICS.iter().any(|magic| start.starts_with(magic)))
}

/// Checks a file that has nothing but RDB data, by its checksum. Accepts a file that was written without a checksum;
/// Redis checks it when it loads it.
///
/// # Errors
/// If the file cannot be read or is damaged.
pub(super) fn check_rdb(path: &Path) -> Result<(), Fault> {
    let damage = |what: &str| Fault::Damage { offset: None, what: what.to_owned() };
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(data_length) = length.checked_sub(RDB_CHECKSUM_BYTES as u64).filter(|&length| length > 0) else {
        return Err(damage("it is too short for an RDB file"));
    };
    let mut input = BufReader::with_capacity(READ_BYTES, file);
    let mut digest = RDB_CRC.digest();
    let (mut left, mut last) = (data_length, 0);
    while left > 0 {
        let bytes = input.fill_buf()?;
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if taken == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        digest.update(&bytes[..taken]);
        last = bytes[taken - 1];
        input.consume(taken);
        left -= taken as u64;
    }
    let mut stored = [0; RDB_CHECKSUM_BYTES];
    input.read_exact(&mut stored)?;
    match u64::from_le_bytes(stored) {
        _ if last != RDB_END => Err(damage("it is an RDB file without an end marker")),
        0 => Ok(()),
        stored if stored == digest.finalize() => Ok(()),
        _ => Err(damage("its checksum does not match its content")),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// What Redis 7.0 writes for a store without keys.
    const EMPTY_RDB: &[u8] =
        b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x08\x04\x0ck\
        \xfa\x08used-mem\xc2\x08\x60\x0d\x00\xfa\x08aof-base\xc0\x01\xff\x0a\xa0\x8e\x1fm\x88X\x94";

    #[test]
    fn every_damage_of_an_rdb_file_is_detected() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("base.rdb");
        let check = |content: &[u8]| {
            std::fs::write(&path, content).expect("a file written");
            check_rdb(&path)
        };
        check(EMPTY_RDB).expect("the file of a real server");
        for at in 0..EMPTY_RDB.len() {
            assert!(check(&EMPTY_RDB[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = EMPTY_RDB.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(check(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
