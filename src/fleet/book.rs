//! The assignments of a zone that its hosts have not reported yet.

use serde::{Deserialize, Serialize};

use super::layout::{self, BOOK_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::place::wide;
use crate::placement::{HostInventory, Reservation};

/// Most reservations of a zone.
const RESERVATIONS_MAX: usize = 10_000;

/// One for each zone, so that capacity of its hosts and the uniqueness of volumes in it are decided in one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// Grows with every change. Without it a book could come to have the same bytes, and so the same tag in a bucket, as before:
    /// a scheduler that looked at a host before it reported an assignment would then not notice that this was taken out meanwhile.
    pub sequence: u64,
    /// In the order in which they were made.
    pub reservations: Vec<Reservation>,
}

impl Book {
    /// From the bytes of an object, or of none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub fn read(path: &str, bytes: Option<&[u8]>) -> Result<Self> {
        let book: Self = bytes.map_or_else(|| Ok(Self::default()), |bytes| layout::parse(path, bytes))?;
        match book.reservations.len() {
            0..=RESERVATIONS_MAX => Ok(book),
            count => Err(Error::new(ErrorKind::Corrupt, format!("{path} has {count} reservations, at most {RESERVATIONS_MAX} are made"))),
        }
    }

    /// The bytes of its next version.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] if it is full.
    pub fn next(mut self, path: &str) -> Result<Vec<u8>> {
        // From its end it begins again: it only has to differ from the one before.
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = layout::write(path, &self)?;
        // No reader takes a larger one, and it would close the zone.
        if self.reservations.len() > RESERVATIONS_MAX || wide(bytes.len()) > BOOK_BYTES_MAX {
            return Err(Error::new(ErrorKind::NoSpace, format!("{path} is full: release reservations, or let them lapse")));
        }
        Ok(bytes)
    }

    /// Takes out what has lapsed by `now`, and what the hosts report themselves.
    pub fn clean(&mut self, hosts: &[HostInventory], now: u64) {
        let reported = |reservation: &Reservation| {
            let host = hosts.iter().find(|host| host.host == reservation.host);
            host.is_some_and(|host| host.assignments.contains(&reservation.id))
        };
        self.reservations.retain(|reservation| reservation.expires_at > now && !reported(reservation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_lose_what_lapsed_and_what_was_reported() {
        let of = |id: &str, expires_at| Reservation { id: id.into(), host: "a".into(), expires_at, ..Reservation::default() };
        let mut book = Book { sequence: 3, reservations: vec![of("old", 10), of("reported", 20), of("held", 20)] };
        let hosts = [HostInventory { host: "a".into(), assignments: vec!["reported".into()], ..HostInventory::default() }];
        book.clean(&hosts, 10);
        assert_eq!(book.reservations, [of("held", 20)]);
        let bytes = book.clone().next("p").unwrap();
        let read = Book::read("p", Some(&bytes)).unwrap();
        assert_eq!((read.sequence, &read.reservations), (4, &book.reservations));
        assert_eq!(Book::read("p", None).unwrap(), Book::default());
    }

    #[test]
    fn broken_books_are_named() {
        for bytes in [&b""[..], b"[]", b"{\"sequence\":-1,\"reservations\":[]}", b"{\"sequence\":1,\"reservations\":[],\"x\":1}"] {
            let error = Book::read("reservations/a.b.json", Some(bytes)).unwrap_err();
            assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("reservations/a.b.json"), "{error}");
        }
    }
}
