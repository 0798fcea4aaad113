//! Properties over random layouts, and literal examples.

use super::*;

/// SplitMix64: enough chance for these tests, with no dependency.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn shuffled(&mut self, mut bits: Vec<Bit>) -> Layout {
        for i in (1..bits.len()).rev() {
            bits.swap(i, self.below(i as u64 + 1) as usize);
        }
        Layout::new(&bits).unwrap()
    }

    /// A layout of any dimensions, with at most `most` bits.
    fn layout(&mut self, most: u64) -> Layout {
        let mut counts = [0u8; Dim::ALL.len()];
        let bits = (0..self.below(most + 1))
            .map(|_| {
                let d = self.below(Dim::ALL.len() as u64) as usize;
                counts[d] += 1;
                Bit::new(Dim::ALL[d], counts[d] - 1)
            })
            .collect();
        self.shuffled(bits)
    }

    fn permutation(&mut self, len: u32) -> Layout {
        self.shuffled((0..len as u8).map(|i| Bit::new(Dim::Address, i)).collect())
    }
}

fn parse(text: &str) -> Layout {
    text.parse().unwrap()
}

#[test]
fn addresses_and_coordinates_are_inverse() {
    let mut chance = Chance(1);
    for _ in 0..200 {
        let layout = chance.layout(12);
        let mut seen = std::collections::HashSet::new();
        for address in 0..layout.size() as usize {
            let coords = layout.coords(address);
            assert!(seen.insert(coords), "{layout}: {coords:?} twice");
            assert_eq!(layout.address(coords), address, "{layout}");
            assert!(Dim::ALL.iter().all(|&dim| (coords.get(dim) as u64) < layout.extent(dim)));
        }
    }
    // The widest layouts, at random addresses.
    for _ in 0..2000 {
        let layout = chance.permutation(32);
        let address = chance.below(1 << 32) as usize;
        assert_eq!(layout.address(layout.coords(address)), address, "{layout}");
    }
}

#[test]
fn composition_is_what_it_says_and_associative() {
    let mut chance = Chance(2);
    for _ in 0..500 {
        let layout = chance.layout(32);
        let (p, q) = (chance.permutation(layout.len()), chance.permutation(layout.len()));
        let compose = |a: &Layout, b: &Layout| Layout::compose(a, b).unwrap();
        assert_eq!(compose(&compose(&p, &q), &layout), compose(&p, &compose(&q, &layout)));
        assert_eq!(compose(&Layout::identity(layout.len()).unwrap(), &layout), layout);
        assert_eq!(compose(&p, &Layout::identity(layout.len()).unwrap()), p);
        let x = chance.below(layout.size()) as usize;
        let there = p.coords(x).get(Dim::Address) as usize;
        assert_eq!(compose(&p, &layout).coords(x), layout.coords(there));
    }
    assert!(Layout::compose(&parse("k0"), &parse("n0")).is_err(), "not a permutation");
    assert!(Layout::compose(&parse("address0"), &parse("n0 k0")).is_err(), "not of the same length");
}

#[test]
fn inverses_cancel() {
    let mut chance = Chance(3);
    for _ in 0..500 {
        let len = chance.below(33) as u32;
        let p = chance.permutation(len);
        let identity = Layout::identity(len).unwrap();
        assert_eq!(Layout::compose(&p.invert(), &p).unwrap(), identity, "{p}");
        assert_eq!(Layout::compose(&p, &p.invert()).unwrap(), identity, "{p}");
        assert_eq!(p.invert().invert(), p);
        let layout = chance.layout(32);
        assert_eq!(Layout::compose(&layout.invert(), &layout).unwrap(), layout.sorted());
        let to = chance.shuffled(layout.bits().to_vec());
        let conversion = layout.conversion(&to).unwrap();
        assert_eq!(Layout::compose(&conversion, &layout).unwrap(), to);
        // A move of data by the conversion finds every coordinate in its place.
        let x = chance.below(to.size()) as usize;
        assert_eq!(layout.address(to.coords(x)), conversion.coords(x).get(Dim::Address) as usize);
    }
    assert!(parse("n0 k0").conversion(&parse("n0 n1")).is_err());
}

#[test]
fn products_are_tiles() {
    let mut chance = Chance(4);
    for _ in 0..500 {
        let [a, b, c] = [10, 10, 12].map(|most| chance.layout(most));
        let product = |outer: &Layout, inner: &Layout| Layout::product(outer, inner).unwrap();
        assert_eq!(product(&product(&a, &b), &c), product(&a, &product(&b, &c)));
        assert_eq!(product(&a, &Layout::EMPTY), a);
        assert_eq!(product(&Layout::EMPTY, &a), a);
        let (x, y) = (chance.below(a.size()), chance.below(b.size()));
        let (outer, inner) = (a.coords(x as usize), b.coords(y as usize));
        let coords = product(&a, &b).coords((x * b.size() + y) as usize);
        for dim in Dim::ALL {
            assert_eq!(coords.get(dim) as u64, outer.get(dim) as u64 * b.extent(dim) + inner.get(dim) as u64);
        }
    }
    let wide = Layout::identity(20).unwrap();
    assert!(Layout::product(&wide, &wide).is_err(), "40 bits");
}

#[test]
fn text_is_read_back() {
    let mut chance = Chance(5);
    for _ in 0..500 {
        let layout = chance.layout(32);
        assert_eq!(parse(&layout.to_string()), layout);
    }
    assert_eq!(parse(""), Layout::EMPTY);
    assert_eq!(parse("n0 k0 \n n1").to_string(), "n0 k0 n1");
    assert_eq!(Layout::row_major(&[(Dim::N, 2), (Dim::K, 3)]).unwrap().to_string(), "k0 k1 k2 n0 n1");
}

#[test]
fn what_is_no_layout_is_refused_with_the_reason() {
    let many = (0..33).map(|i| format!("n{i} ")).collect::<String>();
    let cases = [
        ("n0 k0 n0", "n0 is there twice"),
        ("n0 n2", "n1 is missing"),
        ("k1", "k0 is missing"),
        ("x0", "`x0` is no coordinate bit"),
        ("0", "`0` is no coordinate bit"),
        ("é1", "`é1` is no coordinate bit"),
        ("k", "below 32"),
        ("k01", "below 32"),
        ("k999", "below 32"),
        (many.as_str(), "below 32"),
    ];
    for (text, reason) in cases {
        let error = text.parse::<Layout>().unwrap_err().to_string();
        assert!(error.contains(reason), "`{text}`: {error}");
    }
    assert!(Layout::new(&[Bit::new(Dim::K, 200)]).unwrap_err().to_string().contains("below 32"));
    assert!(Layout::new(&[Bit::new(Dim::K, 0); 33]).unwrap_err().to_string().contains("33 address bits"));
    assert!(Layout::identity(33).is_err());
    assert!(Layout::row_major(&[(Dim::N, u32::MAX), (Dim::K, 2)]).is_err());
    assert!(Layout::row_major(&[(Dim::N, 1), (Dim::N, 1)]).is_err(), "a dimension named twice");
}

#[test]
fn pictures() {
    // 2-bit fields whose columns are 2 apart, two rows.
    let layout = parse("k1 k0 n0");
    assert_eq!(layout.address(Coords::ORIGIN.with(Dim::N, 1).with(Dim::K, 2)), 5);
    let picture = "\
n,k    0    1    2    3
  0  0,0  0,2  0,1  0,3
  4  1,0  1,2  1,1  1,3
";
    assert_eq!(layout.picture(2), picture);
    assert_eq!(Layout::EMPTY.picture(3), "-  0\n0  -\n");
    let wide = Layout::identity(32).unwrap();
    let text = wide.picture(16);
    assert_eq!(text.lines().count(), 66, "64 rows, a heading and the mark that there are more");
    assert!(text.lines().all(|line| line.ends_with('…')));
}

/// AMD's matrix calculator gives, for results of 32x32 on CDNA: row 8·(r/4) + 4·(lane/32) + r%4, column lane%32.
#[test]
fn a_matrix_instruction_as_a_constant() {
    const fn bit(dim: Dim, index: u8) -> Bit {
        Bit::new(dim, index)
    }
    const RESULT: Layout = Layout::constant(&[
        bit(Dim::Column, 0),
        bit(Dim::Column, 1),
        bit(Dim::Column, 2),
        bit(Dim::Column, 3),
        bit(Dim::Column, 4),
        bit(Dim::Row, 2),
        bit(Dim::Row, 0),
        bit(Dim::Row, 1),
        bit(Dim::Row, 3),
        bit(Dim::Row, 4),
    ]);
    let held = Layout::row_major(&[(Dim::Register, 4), (Dim::Lane, 6)]).unwrap();
    for register in 0..16 {
        for lane in 0..64 {
            let address = held.address(Coords::ORIGIN.with(Dim::Register, register).with(Dim::Lane, lane));
            let coords = RESULT.coords(address);
            assert_eq!(coords.get(Dim::Row), 8 * (register / 4) + 4 * (lane / 32) + register % 4);
            assert_eq!(coords.get(Dim::Column), lane % 32);
        }
    }
}
