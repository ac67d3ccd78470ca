//! What a certificate says of itself: from when to when, and for which names.
//!
//! Reads just as much of X.509 (RFC 5280 §4.1) as is needed to warn a person; whether
//! a certificate is to be trusted is the client's question.

use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};

/// Seconds since 1970 from which and to which a certificate holds, if that can be read.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, mut fields) = issuer(certificate)?;
    let mut validity = Der(fields.take(SEQUENCE)?);
    Some((validity.time()?, validity.time()?))
}

/// The names of who has issued it and of what it is for, as they are encoded, if they can be read.
pub fn names<'a>(certificate: &'a CertificateDer<'_>) -> Option<(&'a [u8], &'a [u8])> {
    let (issuer, mut fields) = issuer(certificate)?;
    fields.take(SEQUENCE)?;
    Some((issuer, fields.take(SEQUENCE)?))
}

/// The issuer's name, and the fields after it.
fn issuer<'a>(certificate: &'a CertificateDer<'_>) -> Option<(&'a [u8], Der<'a>)> {
    let mut whole = Der(certificate.as_ref());
    let mut certificate = Der(whole.take(SEQUENCE)?);
    let mut fields = Der(certificate.take(SEQUENCE)?);
    // The version may be left out.
    let _ = fields.take(VERSION);
    fields.take(INTEGER)?;
    fields.take(SEQUENCE)?;
    Some((fields.take(SEQUENCE)?, fields))
}

/// Whether it is for `host`, a name or an address without brackets.
pub fn is_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else {
        return false;
    };
    ServerName::try_from(host).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
}

/// What is left of a DER encoding (X.690).
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, if it is of that kind; else nothing is taken.
    fn take(&mut self, kind: u8) -> Option<&'a [u8]> {
        let [found, length, rest @ ..] = self.0 else {
            return None;
        };
        if *found != kind {
            return None;
        }
        let (length, rest) = match length {
            0..=0x7f => (usize::from(*length), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                let length = digits
                    .iter()
                    .fold(0, |length, digit| length << 8 | usize::from(*digit));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    /// `UTCTime` or `GeneralizedTime`, which RFC 5280 wants in UTC and to the second.
    fn time(&mut self) -> Option<u64> {
        let digits = |text: &[u8]| -> Option<u64> {
            text.iter().try_fold(0, |number, digit| {
                let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
                Some(number * 10 + digit)
            })
        };
        let (year, rest) = if let Some(text) = self.take(UTC_TIME) {
            let (year, rest) = text.split_at_checked(2)?;
            let year = digits(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        } else {
            let (year, rest) = self.take(GENERALIZED_TIME)?.split_at_checked(4)?;
            (digits(year)?, rest)
        };
        let [a, b, c, d, e, f, g, h, i, j, b'Z'] = rest else {
            return None;
        };
        let pair = |tens, ones| digits(&[tens, ones]);
        let (month, day) = (pair(*a, *b)?, pair(*c, *d)?);
        let (hour, minute, second) = (pair(*e, *f)?, pair(*g, *h)?, pair(*i, *j)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
            return None;
        }
        Some(days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
    }
}

/// Days from 1970-01-01 (the Gregorian calendar).
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap = year / 4 - year / 100 + year / 400;
    year * 365 + leap + (month * 153 + 2) / 5 + day - 1 - DAYS_TO_1970
}

/// Seconds of a day.
pub const DAY: u64 = 24 * 60 * 60;
/// From 1 March of the year 0.
const DAYS_TO_1970: u64 = 719_468;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn days_are_counted() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
        assert_eq!(days(2024, 2, 29), 19_782);
        assert_eq!(days(2026, 11, 26), 20_783);
    }

    #[test]
    fn a_certificate_says_how_long_and_for_whom() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/localhost.pem");
        let certificate = CertificateDer::from_pem_file(file).unwrap();
        let (from, to) = validity(&certificate).unwrap();
        assert!(from > days(2026, 1, 1) * DAY && from < days(2027, 1, 1) * DAY);
        assert!(to > days(2126, 1, 1) * DAY && to < days(2127, 1, 1) * DAY);
        assert!(is_for(&certificate, "localhost"));
        assert!(!is_for(&certificate, "127.0.0.1"));
        assert!(!is_for(&certificate, "localhost.example"));
        // What ends early says nothing, and nothing worse.
        for end in 0..certificate.len() {
            let _ = validity(&CertificateDer::from(&certificate[..end]));
        }
    }
}
