//! Scalar types, without outside data: every code, and encoding against a search of the table of codes.

use bitsmith_compiler::dtype::{DType, Kind};

/// Types whose every code fits in a table.
fn tabled() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.bits() <= 16)
}

fn codes(dtype: DType) -> Box<dyn Iterator<Item = u32>> {
    match dtype.bits() {
        // A prime step and the ends: enough of 32 bits to meet every exponent and both signs.
        32 => Box::new((0..=u32::MAX).step_by(4093).chain(u32::MAX - 1000..=u32::MAX).chain(0..1000)),
        bits => Box::new(0..1 << bits),
    }
}

#[test]
fn encode_undoes_decode() {
    for dtype in DType::ALL {
        for code in codes(dtype) {
            let value = dtype.decode(code);
            for encoded in [dtype.encode(value), dtype.encode_nonsaturating(value)] {
                if value.is_nan() {
                    assert!(dtype.decode(encoded).is_nan(), "{dtype} {code:#x}: NaN became {encoded:#x}");
                } else if value.is_infinite() && encoded != code {
                    assert!(dtype.bits() <= 8, "{dtype} {code:#x}: {value} became {encoded:#x}");
                    assert_eq!(dtype.decode(encoded).abs(), dtype.max_finite(), "{dtype} {code:#x}: not saturated");
                } else {
                    assert_eq!(encoded, code, "{dtype}: {value}");
                }
            }
            if value.is_infinite() {
                assert_eq!(dtype.encode_nonsaturating(value), code, "{dtype}: {value}");
            }
        }
    }
}

#[test]
fn decode_is_monotonic_in_the_code() {
    for dtype in tabled() {
        let half = 1u32 << (dtype.bits() - 1);
        // Codes from the least number to the greatest.
        let ascending: Vec<u32> = match dtype.kind() {
            Kind::Float(_) => (half..2 * half).rev().chain(0..half).collect(),
            Kind::Signed(_) => (half..2 * half).chain(0..half).collect(),
            Kind::Exponent | Kind::Unsigned(_) => (0..2 * half).collect(),
        };
        let values: Vec<f64> = ascending.iter().map(|&code| dtype.decode(code)).filter(|x| !x.is_nan()).collect();
        for pair in values.windows(2) {
            let zeros = pair[0] == 0.0 && pair[1] == 0.0;
            assert!(pair[0] < pair[1] || zeros, "{dtype}: {} before {}", pair[0], pair[1]);
        }
        assert_eq!(values.iter().copied().filter(|x| x.is_finite()).fold(0.0, f64::max), dtype.max_finite(), "{dtype}");
    }
}

#[test]
fn encode_is_monotonic() {
    let mut inputs: Vec<f64> = (0..1 << 16).map(|bits| DType::F16.decode(bits)).filter(|x| !x.is_nan()).collect();
    inputs.sort_by(f64::total_cmp);
    for dtype in DType::ALL {
        // What is not positive has no power of two.
        let domain = inputs.iter().filter(|&&x| dtype != DType::E8m0 || x > 0.0);
        let values: Vec<f64> = domain.map(|&x| dtype.decode(dtype.encode(x))).collect();
        assert!(values.is_sorted(), "{dtype}");
    }
}

/// Where rounding ends: at a number of the table, or past its end.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Code(u32),
    Below,
    Above,
}

/// What a type's codes are, found by decoding all of them.
struct Table {
    dtype: DType,
    /// The finite numbers, ascending, each with its code; of two zeros, the positive one.
    numbers: Vec<(f64, u32)>,
    negative_zero: bool,
    /// Whether some code is not a finite number.
    specials: bool,
}

impl Table {
    fn of(dtype: DType) -> Table {
        let all: Vec<(f64, u32)> = codes(dtype).map(|code| (dtype.decode(code), code)).collect();
        let is_negative_zero = |x: f64| x == 0.0 && x.is_sign_negative();
        let mut numbers: Vec<(f64, u32)> =
            all.iter().copied().filter(|&(x, _)| x.is_finite() && !is_negative_zero(x)).collect();
        numbers.sort_by(|a, b| a.0.total_cmp(&b.0));
        Table {
            dtype,
            numbers,
            negative_zero: all.iter().any(|&(x, _)| is_negative_zero(x)),
            specials: all.iter().any(|&(x, _)| !x.is_finite()),
        }
    }

    /// The nearest number by comparing distances to both neighbours, the even code where they are equal. The table goes
    /// on past both ends by one number of the same spacing and the other parity, which stands for overflow.
    fn nearest(&self, x: f64) -> End {
        let table = &self.numbers;
        let (first, last) = (table[0], table[table.len() - 1]);
        let above = (last.0 + (last.0 - table[table.len() - 2].0), last.1 ^ 1);
        let below = (first.0 - (table[1].0 - first.0), first.1 ^ 1);
        let i = table.partition_point(|&(value, _)| value < x);
        let low = if i == 0 { below } else { table[i - 1] };
        let high = if i == table.len() { above } else { table[i] };
        let (down, up) = (x - low.0, high.0 - x);
        let goes_up = up < down || (up == down && high.1.is_multiple_of(2));
        match goes_up {
            true if i == table.len() => End::Above,
            true => End::Code(high.1),
            false if i == 0 => End::Below,
            false => End::Code(low.1),
        }
    }

    /// What [`DType::encode`] and [`DType::encode_nonsaturating`] promise for a number that is not NaN.
    fn check(&self, x: f64) {
        let dtype = self.dtype;
        let end = self.nearest(x);
        let small = !dtype.is_float() || dtype.bits() <= 8;
        for (found, saturates) in [(dtype.encode(x), small), (dtype.encode_nonsaturating(x), !self.specials)] {
            let value = dtype.decode(found);
            match end {
                End::Code(0) if x.is_sign_negative() => {
                    assert_eq!(value, 0.0, "{dtype}: {x:e} gave {found:#x}");
                    assert_eq!(value.is_sign_negative(), self.negative_zero, "{dtype}: {x:e} gave {found:#x}");
                }
                End::Code(code) => assert_eq!(found, code, "{dtype}: {x:e} gave {value:e}"),
                End::Above if saturates => assert_eq!(found, self.numbers[self.numbers.len() - 1].1, "{dtype}: {x:e}"),
                End::Below if saturates => assert_eq!(found, self.numbers[0].1, "{dtype}: {x:e}"),
                End::Above => assert!(value.is_nan() || value == f64::INFINITY, "{dtype}: {x:e} gave {value}"),
                End::Below => assert!(value.is_nan() || value == f64::NEG_INFINITY, "{dtype}: {x:e} gave {value}"),
            }
        }
    }
}

/// Types that round to nearest and whose codes fit in a table.
fn rounding() -> impl Iterator<Item = Table> {
    tabled().filter(|&dtype| dtype != DType::E8m0).map(Table::of)
}

#[test]
fn encode_finds_the_nearest_for_every_f16() {
    for table in rounding() {
        for x in (0..1 << 16).map(|bits| DType::F16.decode(bits)).filter(|x| !x.is_nan()) {
            table.check(x);
        }
    }
}

#[test]
fn encode_finds_the_nearest_half_way_and_beside() {
    for table in rounding() {
        let numbers = &table.numbers;
        // Half way between neighbours, exact in f64; past the ends, half way to where the next number would be.
        let mut halves: Vec<f64> = numbers.windows(2).map(|pair| (pair[0].0 + pair[1].0) / 2.0).collect();
        let [first, second] = [numbers[0].0, numbers[1].0];
        let [last, before] = [numbers[numbers.len() - 1].0, numbers[numbers.len() - 2].0];
        halves.extend([first - (second - first) / 2.0, last + (last - before) / 2.0]);
        for x in halves {
            for x in [x, x.next_up(), x.next_down()] {
                table.check(x);
            }
            let single = x as f32;
            assert_eq!(single as f64, x, "{}: a half that f32 does not have", table.dtype);
            table.check(single.next_up() as f64);
            table.check(single.next_down() as f64);
        }
        for x in [f64::INFINITY, f64::MAX, 1e300, f64::MIN_POSITIVE, 5e-324, 1e-320, 0.0] {
            table.check(x);
            table.check(-x);
        }
    }
}

#[test]
fn wide_types_agree_with_the_machine() {
    let mut rng = fastrand::Rng::with_seed(8);
    for i in 0..200_000 {
        let x = match i % 3 {
            // Any bits; half way between two f32; what integers see.
            0 => f64::from_bits(rng.u64(..)),
            1 => {
                let low = f32::from_bits(rng.u32(..));
                let half = (low as f64 + low.next_up() as f64) / 2.0;
                [half, half.next_up(), half.next_down()][rng.usize(..3)]
            }
            _ => (rng.f64() - 0.5) * 1e10,
        };
        if x.is_nan() {
            continue;
        }
        for found in [DType::F32.encode(x), DType::F32.encode_nonsaturating(x)] {
            assert_eq!(found, (x as f32).to_bits(), "{x:e}");
        }
        assert_eq!(DType::I32.encode(x), x.round_ties_even() as i32 as u32, "{x:e}");
    }
}

#[test]
fn powers_of_two_round_down_or_to_the_nearest() {
    let powers: Vec<f64> = (0..255).map(|code| DType::E8m0.decode(code)).collect();
    let mut inputs: Vec<f64> =
        (0..1 << 16).flat_map(|bits| [DType::F16, DType::Bf16].map(|d| d.decode(bits))).collect();
    for &power in &powers {
        inputs.extend([power, power.next_up(), power.next_down()]);
        inputs.extend([1.5 * power, (1.5 * power).next_up(), (1.5 * power).next_down()]);
    }
    inputs.extend([f64::MAX, f64::MIN_POSITIVE, 5e-324, 2f64.powi(128), 2f64.powi(-128)]);
    for x in inputs {
        if x.is_nan() || x <= 0.0 {
            assert_eq!(DType::E8m0.encode(x), 0xff, "{x}");
            assert_eq!(DType::E8m0.encode_nonsaturating(x), 0xff, "{x}");
            continue;
        }
        let down = powers.partition_point(|&power| power <= x).saturating_sub(1);
        assert_eq!(DType::E8m0.encode(x), down as u32, "{x:e}");
        // Past the middle of the greatest and what would follow it, there is only NaN. Between the two least numbers,
        // where a binary32 is subnormal, the conversions that this one follows always go up.
        let least = down == 0 && x > powers[0];
        let up = least || x - powers[down] >= powers[down] / 2.0;
        assert_eq!(DType::E8m0.encode_nonsaturating(x), down as u32 + up as u32, "{x:e}");
    }
}

#[test]
fn nan_becomes_what_the_type_has_for_it() {
    for dtype in DType::ALL {
        for nan in [f64::NAN, -f64::NAN] {
            for code in [dtype.encode(nan), dtype.encode_nonsaturating(nan)] {
                let value = dtype.decode(code);
                let has_nan = !matches!(dtype.kind(), Kind::Signed(_) | Kind::Unsigned(_))
                    && !matches!(dtype, DType::E2m1 | DType::E2m3 | DType::E3m2);
                if has_nan {
                    assert!(value.is_nan(), "{dtype}: {value}");
                } else {
                    assert_eq!(value, 0.0, "{dtype}");
                }
                assert_eq!(code as u64 >> dtype.bits(), 0, "{dtype}: {code:#x} has bits above the type's width");
            }
        }
    }
}
