// SPDX-License-Identifier: GPL-2.0

//! The frames of the lab's control channel.
//!
//! One frame is one line: `@@` checksum `:` base64 of the content. A console may put other text
//! around it, even on the same line, so a frame is looked for anywhere in a line, and its checksum
//! decides. Whoever waits for an answer sends the request again after a while; the server knows the
//! number of the last request and answers a repetition without running it again.

use base64::{engine::general_purpose::STANDARD_NO_PAD, Engine};
use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};

const MARK: &str = "@@";

/// Makes the line for a content, newline included.
pub fn encode(content: &[u8]) -> String {
    let sum = crc32fast::hash(content);
    format!("{MARK}{sum:08x}:{}\n", STANDARD_NO_PAD.encode(content))
}

/// Finds a frame in a line; `None` if there is none or it is damaged.
pub fn decode(line: &str) -> Option<Vec<u8>> {
    (0..line.len()).find_map(|at| decode_at(line.get(at..)?.strip_prefix(MARK)?))
}

fn decode_at(frame: &str) -> Option<Vec<u8>> {
    let (sum, rest) = frame.split_once(':')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    let text = rest
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '/')
        .next()?;
    let content = STANDARD_NO_PAD.decode(text).ok()?;
    (crc32fast::hash(&content) == sum).then_some(content)
}

/// A command for the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Counts up.
    pub id: u64,
    /// Seconds until it is killed.
    pub timeout: u64,
    /// Shell text.
    pub command: String,
}

impl Request {
    /// As a frame.
    pub fn to_line(&self) -> String {
        encode(format!("Q {} {} {}", self.id, self.timeout, self.command).as_bytes())
    }

    /// From a line.
    pub fn from_line(line: &str) -> Option<Self> {
        let content = String::from_utf8(decode(line)?).ok()?;
        let mut parts = content.splitn(4, ' ');
        if parts.next()? != "Q" {
            return None;
        }
        Some(Self {
            id: parts.next()?.parse().ok()?,
            timeout: parts.next()?.parse().ok()?,
            command: parts.next()?.to_owned(),
        })
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the request.
    pub id: u64,
    /// Exit status; 124 after a time-out.
    pub status: i32,
    /// Standard output and error.
    pub output: String,
}

/// An output that is longer is compressed: what lines carry is slow, dumps in hexadecimal most of all.
const SHORT: usize = 256;
/// The longest output that is believed, in bytes.
const LONGEST: usize = 64 << 20;
/// Of 1 to 10: who sends is an emulated CPU.
const EFFORT: u8 = 3;

impl Answer {
    /// As a frame.
    pub fn to_line(&self) -> String {
        let kind = if self.output.len() > SHORT { 'Z' } else { 'A' };
        let mut content = format!("{kind} {} {} ", self.id, self.status).into_bytes();
        match kind {
            'Z' => content.extend(compress_to_vec(self.output.as_bytes(), EFFORT)),
            _ => content.extend(self.output.as_bytes()),
        }
        encode(&content)
    }

    /// From a line.
    pub fn from_line(line: &str) -> Option<Self> {
        let content = decode(line)?;
        let mut parts = content.splitn(4, |&byte| byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let (kind, id, status) = (word()?, word()?, word()?);
        let output = parts.next()?;
        let output = match kind {
            "A" => output.to_vec(),
            "Z" => decompress_to_vec_with_limit(output, LONGEST).ok()?,
            _ => return None,
        };
        Some(Self {
            id: id.parse().ok()?,
            status: status.parse().ok()?,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        Answer {
            id: 7,
            status: -1,
            output: "two words\nand a line\n".into(),
        }
    }

    #[test]
    fn frames_survive_text_around_them() {
        let line = format!("[ 1.0] kernel says @{}", answer().to_line());
        assert_eq!(Answer::from_line(&line), Some(answer()));
        let request = Request {
            id: 1,
            timeout: 2,
            command: "echo 'a  b'".into(),
        };
        assert_eq!(Request::from_line(&request.to_line()), Some(request));
    }

    #[test]
    fn a_damaged_frame_is_no_frame() {
        let line = answer().to_line();
        for at in 2..line.len() - 1 {
            let mut bytes = line.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(
                Answer::from_line(&String::from_utf8(bytes).unwrap()),
                None,
                "at {at}"
            );
        }
        assert_eq!(Answer::from_line(&line[..line.len() / 2]), None);
        assert_eq!(Answer::from_line("@@"), None);
    }

    #[test]
    fn a_long_answer_takes_a_short_line() {
        let mut long = answer();
        for length in [SHORT, SHORT + 1, 100_000] {
            long.output = "00 10 d3 ".repeat(length)[..length].to_owned();
            let line = long.to_line();
            assert!(
                line.len() < length.max(2 * SHORT),
                "{length}: {}",
                line.len()
            );
            assert_eq!(Answer::from_line(&line), Some(long.clone()));
        }
        // Not one that was never made: what is inside does not unpack.
        assert_eq!(Answer::from_line(&encode(b"Z 1 0 \xff\xff\xff")), None);
    }

    #[test]
    fn a_request_is_no_answer() {
        assert_eq!(Request::from_line(&answer().to_line()), None);
    }
}
