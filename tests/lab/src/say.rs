// SPDX-License-Identifier: GPL-2.0

//! What the lab prints, when several machines are at work: each line says from which it is.

use std::cell::Cell;

thread_local! {
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// From now on all lines of this thread are those of lane `number`.
pub fn this_is_lane(number: usize) {
    LANE.set(Some(number));
}

/// Prints lines, in one piece.
pub fn lines(text: &str) {
    match LANE.get() {
        None => println!("{text}"),
        Some(number) => println!("{}", text_of_lane(number, text)),
    }
}

fn text_of_lane(number: usize, text: &str) -> String {
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| format!("{number}| {line}"))
        .collect();
    lines.join("\n")
}

/// As `println!`.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::lines(&format!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_lane() {
        assert_eq!(text_of_lane(2, "a\n\nb"), "2| a\n2| \n2| b");
    }
}
