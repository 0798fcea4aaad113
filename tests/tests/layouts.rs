//! N16 packs codes where its layouts say, bit for bit.

use bitsmith_compiler::format::n16::{N16, ROWS, plane_layout};
use bitsmith_compiler::format::{Format, Quantized};
use bitsmith_compiler::layout::{Coords, Dim, Layout};

/// Format, what packing flips in a code (the sign bit of two's complement), the layouts of its planes in a unit.
const CASES: [(&str, u8, &[&str]); 12] = [
    ("binary-channel", 0, &["k2 k3 k4 k0 k1 n0 n1 n2 n3"]),
    ("uint2-channel", 0, &["b0 k2 k3 k0 k1 n0 n1 n2 n3"]),
    ("int2-channel", 2, &["b0 k2 k3 k0 k1 n0 n1 n2 n3"]),
    ("uint4-channel", 0, &["b0 b1 k2 k0 k1 n0 n1 n2 n3"]),
    ("int4-channel", 8, &["b0 b1 k2 k0 k1 n0 n1 n2 n3"]),
    ("uint8-channel", 0, &["b0 b1 b2 k0 k1 n0 n1 n2 n3"]),
    ("int8-channel", 128, &["b0 b1 b2 k0 k1 n0 n1 n2 n3"]),
    ("uint3-channel", 0, &["b0 k2 k3 k0 k1 n0 n1 n2 n3 k4", "k2 k3 k4 k0 k1 n0 n1 n2 n3"]),
    ("uint5-channel", 0, &["b0 b1 k2 k0 k1 n0 n1 n2 n3 k3 k4", "k2 k3 k4 k0 k1 n0 n1 n2 n3"]),
    ("uint6-channel", 0, &["b0 b1 k2 k0 k1 n0 n1 n2 n3 k3", "b0 k2 k3 k0 k1 n0 n1 n2 n3"]),
    // Groups that padding moves: to whole quads, and to whole units.
    ("int3-g50", 4, &["b0 k2 k3 k0 k1 n0 n1 n2 n3 k4", "k2 k3 k4 k0 k1 n0 n1 n2 n3"]),
    ("int6-g100", 32, &["b0 b1 k2 k0 k1 n0 n1 n2 n3 k3", "b0 k2 k3 k0 k1 n0 n1 n2 n3"]),
];

#[test]
fn packed_codes_lie_where_the_layout_says() {
    let mut rng = fastrand::Rng::with_seed(16);
    for (name, flip, texts) in CASES {
        let planes: Vec<Layout> = texts.iter().map(|text| text.parse().unwrap()).collect();
        // Whole blocks, then rows and columns that do not fill theirs.
        for (n, k) in [(32, 256), (19, 300), (1, 7)] {
            let q = random(name, n, k, &mut rng);
            let (n16, packed) = N16::pack(&q).unwrap();
            assert_eq!(n16.plane_layouts().unwrap(), planes, "{name}");
            assert_eq!(packed.len(), n.div_ceil(ROWS) * n16.record);
            let expected = placed(&q, &n16, &planes, flip);
            for (block, expected) in expected.iter().enumerate() {
                let units = (0..n16.units).map(|unit| block * n16.record + n16.unit_place(unit));
                let codes: Vec<u8> = units.flat_map(|at| packed[at..][..n16.unit_bytes()].to_vec()).collect();
                let differs = codes.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{name} [{n}, {k}], block {block}: first byte that differs");
            }
        }
    }
}

/// The codes of each block of 16 rows, placed bit by bit.
fn placed(q: &Quantized, n16: &N16, planes: &[Layout], flip: u8) -> Vec<Vec<u8>> {
    let unit_bits: u64 = planes.iter().map(Layout::size).sum();
    let mut blocks = vec![vec![0u8; n16.units * unit_bits as usize / 8]; q.n.div_ceil(ROWS)];
    for (i, &code) in q.codes.iter().enumerate() {
        let (row, column) = (i / q.k, i % q.k);
        let padded = column / n16.group * n16.padded_group + column % n16.group;
        let unit = 1usize << planes[0].count(Dim::K);
        let mut base = padded / unit * unit_bits as usize;
        let mut code = code ^ flip;
        for plane in planes {
            for b in 0..plane.extent(Dim::B) as u32 {
                let coords = Coords::ORIGIN
                    .with(Dim::N, (row % ROWS) as u32)
                    .with(Dim::K, (padded % unit) as u32)
                    .with(Dim::B, b);
                let address = base + plane.address(coords);
                blocks[row / ROWS][address / 8] |= (code & 1) << (address % 8);
                code >>= 1;
            }
            base += plane.size() as usize;
        }
    }
    blocks
}

fn random(name: &str, n: usize, k: usize, rng: &mut fastrand::Rng) -> Quantized {
    let format: Format = name.parse().unwrap();
    let (rows, columns) = format.granularity.grid(n, k);
    Quantized {
        codes: (0..n * k).map(|_| rng.u8(..) & (0xff >> (8 - format.code.bits()))).collect(),
        scales: vec![0; rows * columns],
        format,
        n,
        k,
        outer: Vec::new(),
        zeros: Vec::new(),
        zeros_outer: Vec::new(),
        scale_offset: 0.0,
        order: None,
    }
}

#[test]
fn a_word_of_nibbles_as_a_picture() {
    // A cell is one bit: row, column, bit of the code.
    let picture = plane_layout(4).picture(8);
    let lines: Vec<Vec<&str>> = picture.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["n,k,b", "0", "1"]);
    // Bytes 0 to 3 of row 0: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    assert_eq!(lines[1][..10], ["0", "0,0,0", "0,0,1", "0,0,2", "0,0,3", "0,4,0", "0,4,1", "0,4,2", "0,4,3", "0,1,0"]);
    assert_eq!(lines[1][29..33], ["0,7,0", "0,7,1", "0,7,2", "0,7,3"]);
    // The next word is the next row.
    assert_eq!(lines[1][33], "1,0,0");
    assert_eq!(lines.len(), 3);
}
