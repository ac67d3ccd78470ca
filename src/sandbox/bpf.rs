//! Makes a system call filter short: most calls are let through or refused by their
//! number alone, and those are found by halving instead of one after the other.
//!
//! The kernel reads a filter at every call, and tries each number once when it is
//! loaded (seccomp(2)): what stands in a row of hundreds makes a start slow. What a
//! program says is not changed; that it is not is tested against the long one.
//! Called by `filter` alone.

use seccompiler::{BpfProgram, sock_filter};

/// `whole` by halving; what depends on arguments is asked of `rest`, which must say
/// the same as `whole` for each call that does.
pub(super) fn shorten(whole: &[sock_filter], rest: &[sock_filter]) -> BpfProgram {
    let arch = whole.get(1).map_or(0, |check| check.k);
    let mut ranges: Vec<(u32, Option<u32>)> = Vec::new();
    for (number, answer) in (0..NUMBERS).zip(answers(whole, arch)) {
        if ranges.last().is_none_or(|(_, last)| *last != answer) {
            ranges.push((number, answer));
        }
    }
    // Beyond it the numbers of other interfaces are (x32), or nothing.
    ranges.push((NUMBERS, None));
    let mut program = whole.get(..PREAMBLE).unwrap_or_default().to_vec();
    program.push(instruction(LOAD, 0));
    halve(&ranges, &mut program);
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if *instruction == ASK_THE_REST {
            instruction.k = distance(end - at - 1);
        }
    }
    program.extend_from_slice(rest);
    program
}

/// One program that says what both would together (seccomp(2)): `first` unless it lets a
/// call through, else `then`. Loaded once and asked once.
pub(super) fn one_after_another(first: &[sock_filter], then: &[sock_filter]) -> BpfProgram {
    let mut program = first.to_vec();
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_ALLOW {
            instruction.code = JUMP;
            instruction.k = distance(end - at - 1);
        }
    }
    program.extend_from_slice(then);
    program
}

/// A program as it was written down: 16 hexadecimal digits an instruction, of its code, its two
/// jumps and its value. `None` where it is not one.
pub(super) fn read(text: &str) -> Option<BpfProgram> {
    let instruction = |word: &str| {
        let whole = u64::from_str_radix(word, 16).ok()?;
        let [c1, c0, jt, jf, value @ ..] = whole.to_be_bytes();
        Some(sock_filter {
            code: u16::from_be_bytes([c1, c0]),
            jt,
            jf,
            k: u32::from_be_bytes(value),
        })
    };
    text.split_ascii_whitespace().map(instruction).collect()
}

/// Writes one down.
#[cfg(test)]
pub(super) fn write(program: &[sock_filter]) -> String {
    let word =
        |one: &sock_filter| format!("{:04x}{:02x}{:02x}{:08x}", one.code, one.jt, one.jf, one.k);
    let line = |row: &[sock_filter]| row.iter().map(word).collect::<Vec<_>>().join(" ") + "\n";
    program.chunks(5).map(line).collect()
}

/// What is answered to each number whatever its arguments; `None` where they matter.
///
/// All numbers go through the program together, and part where it tells them apart: one
/// after the other would read its row of hundreds a thousand times.
fn answers(program: &[sock_filter], arch: u32) -> Vec<Option<u32>> {
    let all: Vec<u32> = (0..NUMBERS).collect();
    let mut answers = vec![None; all.len()];
    let mut waiting = vec![Walk {
        at: 0,
        value: Value::Known(0),
        numbers: all,
    }];
    while let Some(mut walk) = waiting.pop() {
        while let Some(instruction) = program.get(walk.at) {
            walk.at += 1;
            match (instruction.code, walk.value) {
                (LOAD, _) => match instruction.k {
                    0 => walk.value = Value::Number,
                    ARCH => walk.value = Value::Known(arch),
                    _ => break,
                },
                (JUMP, _) => walk.at += instruction.k as usize,
                (RETURN, _) => {
                    for number in &walk.numbers {
                        answers[*number as usize] = Some(instruction.k);
                    }
                    break;
                }
                (AND, Value::Known(value)) => walk.value = Value::Known(value & instruction.k),
                (IF_EQUAL | IF_GREATER | IF_NOT_LESS, _) => {
                    let others = walk.part(instruction);
                    waiting.extend((!others.numbers.is_empty()).then_some(others));
                    if walk.numbers.is_empty() {
                        break;
                    }
                }
                // What the compiler never writes.
                _ => break,
            }
        }
    }
    answers
}

/// Some numbers, on their way through a program.
struct Walk {
    at: usize,
    value: Value,
    /// In order.
    numbers: Vec<u32>,
}

/// What is loaded.
#[derive(Clone, Copy)]
enum Value {
    Known(u32),
    /// The number itself.
    Number,
}

impl Walk {
    /// Goes on with those for which a comparison does not hold; returns the others.
    fn part(&mut self, comparison: &sock_filter) -> Self {
        let Self { value, numbers, .. } = self;
        let k = comparison.k;
        let holds = |value| match comparison.code {
            IF_EQUAL => value == k,
            IF_GREATER => value > k,
            _ => value >= k,
        };
        let those = match *value {
            Value::Known(value) if holds(value) => std::mem::take(numbers),
            Value::Known(_) => Vec::new(),
            Value::Number if comparison.code == IF_EQUAL => match numbers.binary_search(&k) {
                Ok(place) => vec![numbers.remove(place)],
                Err(_) => Vec::new(),
            },
            Value::Number => numbers.split_off(numbers.partition_point(|number| !holds(*number))),
        };
        let others = Self {
            at: self.at + usize::from(comparison.jt),
            value: self.value,
            numbers: those,
        };
        self.at += usize::from(comparison.jf);
        others
    }
}

fn halve(ranges: &[(u32, Option<u32>)], program: &mut BpfProgram) {
    match ranges {
        [] => {}
        [(_, Some(answer))] => program.push(instruction(RETURN, *answer)),
        [(_, None)] => program.push(ASK_THE_REST),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let from = upper.first().map_or(0, |(from, _)| *from);
            let mut below = Vec::new();
            halve(lower, &mut below);
            match u8::try_from(below.len()) {
                Ok(over) => program.push(sock_filter {
                    jt: over,
                    ..instruction(IF_NOT_LESS, from)
                }),
                // Too far for a jump with a condition.
                Err(_) => {
                    program.push(sock_filter {
                        jf: 1,
                        ..instruction(IF_NOT_LESS, from)
                    });
                    program.push(instruction(JUMP, distance(below.len())));
                }
            }
            program.append(&mut below);
            halve(upper, program);
        }
    }
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn distance(instructions: usize) -> u32 {
    u32::try_from(instructions).expect("a program has at most 4096 instructions")
}

/// The look at the architecture, which ends a process of another: the compiler begins with it.
const PREAMBLE: usize = 3;
/// Stands where a jump to the rest comes, until it is known how far that is.
const ASK_THE_REST: sock_filter = sock_filter {
    code: JUMP,
    jt: 0,
    jf: 0,
    k: u32::MAX,
};
/// More than any architecture has.
const NUMBERS: u32 = 1024;
/// Where `struct seccomp_data` holds the architecture; the number is at its start.
const ARCH: u32 = 4;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program over what is known of a call. `None`: it needs more, or has what
    /// the compiler never writes.
    fn run(program: &[sock_filter], data: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let (mut at, mut value) = (0_usize, 0);
        loop {
            let instruction = program.get(at)?;
            at += 1;
            let holds = match instruction.code {
                LOAD => {
                    value = data(instruction.k)?;
                    continue;
                }
                AND => {
                    value &= instruction.k;
                    continue;
                }
                RETURN => return Some(instruction.k),
                JUMP => {
                    at += usize::try_from(instruction.k).ok()?;
                    continue;
                }
                IF_EQUAL => value == instruction.k,
                IF_GREATER => value > instruction.k,
                IF_NOT_LESS => value >= instruction.k,
                _ => return None,
            };
            at += usize::from(if holds {
                instruction.jt
            } else {
                instruction.jf
            });
        }
    }

    /// What a program says to a call with these arguments (low halves).
    fn say(program: &[sock_filter], number: u32, arch: u32, arguments: [u32; 6]) -> Option<u32> {
        run(program, |at| match at {
            0 => Some(number),
            ARCH => Some(arch),
            16.. => {
                let (argument, half) = ((at - 16) / 8, (at - 16) % 8);
                (half == 0).then(|| arguments[argument as usize])
            }
            _ => None,
        })
    }

    #[test]
    fn a_short_program_says_what_the_long_one_says() {
        use crate::{
            config::{Addition, Seccomp},
            sandbox::filter::programs_for,
        };
        let values = [
            0,
            1,
            2,
            4,
            6,
            10,
            16,
            17,
            0x20,
            0x5412,
            0x541c,
            0x2000_0000,
            u32::MAX,
        ];
        for machine in ["x86_64", "aarch64"] {
            for profile in Seccomp::ALL {
                for additions in [&[][..], &Addition::ALL] {
                    for (whole, rest) in programs_for(profile, additions, machine).unwrap() {
                        let short = shorten(&whole, &rest);
                        assert!(short.len() < whole.len());
                        let arch = whole[1].k;
                        for number in (0..NUMBERS + 64).chain(0x4000_0000..0x4000_0008) {
                            for value in values {
                                for which in 0..4 {
                                    let mut arguments = [0; 6];
                                    arguments[which] = value;
                                    // Two calls are looked at by two arguments.
                                    arguments[(which + 1) % 6] = value >> 1;
                                    let said = say(&whole, number, arch, arguments);
                                    assert!(said.is_some(), "{machine} {number}");
                                    assert_eq!(
                                        say(&short, number, arch, arguments),
                                        said,
                                        "{machine} {profile:?} {number} {arguments:?}"
                                    );
                                }
                            }
                        }
                        // Another architecture: the process ends.
                        let ended = Some(libc::SECCOMP_RET_KILL_PROCESS);
                        assert_eq!(say(&short, 0, 0x4000_0003, [0; 6]), ended);
                    }
                }
            }
        }
    }

    #[test]
    fn one_program_says_what_two_would() {
        use crate::{config::Seccomp, sandbox::filter::programs_for};
        for machine in ["x86_64", "aarch64"] {
            let [allow, refuse] = programs_for(Seccomp::Strict, &[], machine).unwrap();
            let short = |(whole, rest): &(BpfProgram, BpfProgram)| shorten(whole, rest);
            let one = one_after_another(&short(&refuse), &short(&allow));
            let arch = allow.0[1].k;
            for number in (0..NUMBERS).chain([0x4000_0001]) {
                for value in [0, 1, 2, 0x10, 0x5412, 0x1000_0000, u32::MAX] {
                    let arguments = [value; 6];
                    let both = [&refuse.0, &allow.0]
                        .map(|program| say(program, number, arch, arguments).unwrap());
                    let wanted = match both {
                        [libc::SECCOMP_RET_ALLOW, second] => second,
                        [first, _] => first,
                    };
                    assert_eq!(
                        say(&one, number, arch, arguments),
                        Some(wanted),
                        "{machine} {number} {value}"
                    );
                }
            }
            let ended = Some(libc::SECCOMP_RET_KILL_PROCESS);
            assert_eq!(say(&one, 0, 0x4000_0003, [0; 6]), ended);
        }
    }

    #[test]
    fn a_long_row_of_ranges_is_jumped_over() {
        let arch = 0xc000_003e;
        let mut whole = vec![
            instruction(LOAD, ARCH),
            sock_filter {
                jt: 1,
                ..instruction(IF_EQUAL, arch)
            },
            instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
            instruction(LOAD, 0),
        ];
        // Every second number.
        for number in (0..NUMBERS).step_by(2) {
            whole.push(sock_filter {
                jf: 1,
                ..instruction(IF_EQUAL, number)
            });
            whole.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
        }
        whole.push(instruction(RETURN, libc::SECCOMP_RET_TRAP));
        let rest = [instruction(RETURN, libc::SECCOMP_RET_TRAP)];
        let short = shorten(&whole, &rest);
        for number in 0..NUMBERS + 9 {
            assert_eq!(
                say(&short, number, arch, [0; 6]),
                say(&whole, number, arch, [0; 6]),
                "{number}"
            );
        }
    }
}
