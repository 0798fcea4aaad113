//! Text of our own for the small model: sentences of a made-up grammar, the same for the same seed.
//!
//! Makes stories of a few words each with agreement in number and gender, sums of small numbers, and places that are told
//! and asked again; and pairs of a right and a wrong sentence for task probes. Words are parted by spaces, punctuation too,
//! so that the tokenizer is a list of words.

use fastrand::Rng;

const NAMES: [(&str, &str, &str); 12] = [
    ("Ada", "she", "her"),
    ("Bela", "he", "his"),
    ("Cora", "she", "her"),
    ("Dario", "he", "his"),
    ("Edda", "she", "her"),
    ("Felix", "he", "his"),
    ("Greta", "she", "her"),
    ("Hugo", "he", "his"),
    ("Ines", "she", "her"),
    ("Jonas", "he", "his"),
    ("Klara", "she", "her"),
    ("Leo", "he", "his"),
];
const NOUNS: [(&str, &str); 20] = [
    ("dog", "dogs"),
    ("cat", "cats"),
    ("bird", "birds"),
    ("horse", "horses"),
    ("child", "children"),
    ("farmer", "farmers"),
    ("teacher", "teachers"),
    ("sailor", "sailors"),
    ("baker", "bakers"),
    ("mouse", "mice"),
    ("goose", "geese"),
    ("fox", "foxes"),
    ("bear", "bears"),
    ("painter", "painters"),
    ("singer", "singers"),
    ("miller", "millers"),
    ("doctor", "doctors"),
    ("king", "kings"),
    ("queen", "queens"),
    ("wolf", "wolves"),
];
const VERBS: [(&str, &str); 10] = [
    ("sleeps", "sleep"),
    ("runs", "run"),
    ("sings", "sing"),
    ("waits", "wait"),
    ("laughs", "laugh"),
    ("works", "work"),
    ("swims", "swim"),
    ("reads", "read"),
    ("dances", "dance"),
    ("walks", "walk"),
];
const ACTIONS: [(&str, &str); 8] = [
    ("sees", "see"),
    ("likes", "like"),
    ("follows", "follow"),
    ("knows", "know"),
    ("helps", "help"),
    ("hears", "hear"),
    ("finds", "find"),
    ("greets", "greet"),
];
const THINGS: [&str; 16] = [
    "ball", "book", "lamp", "stone", "boat", "apple", "key", "drum", "chair", "coat", "bell", "cup", "map", "rope",
    "ring", "box",
];
const PLACES: [&str; 12] = [
    "garden", "kitchen", "forest", "harbour", "school", "barn", "tower", "market", "river", "cellar", "castle", "mill",
];
const COLOURS: [&str; 8] = ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"];
const SIZES: [&str; 6] = ["small", "big", "old", "young", "tall", "quiet"];
const NUMBERS: [&str; 19] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
];
const OTHERS: [&str; 27] = [
    "The", "the", "a", "in", "near", "to", "goes", "puts", "takes", "and", "then", "Then", "is", "are", "plus",
    "where", "Where", "now", "looks", "for", "at", "He", "She", "They", "they", ".", "?",
];

/// Every word, special tokens first.
pub fn vocabulary() -> Vec<String> {
    let mut words: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    let mut add = |word: &str| {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_string());
        }
    };
    OTHERS.iter().for_each(|w| add(w));
    for (name, pronoun, own) in NAMES {
        [name, pronoun, own].into_iter().for_each(&mut add);
    }
    NOUNS.iter().chain(&VERBS).chain(&ACTIONS).for_each(|(a, b)| {
        add(a);
        add(b);
    });
    THINGS.iter().chain(&PLACES).chain(&COLOURS).chain(&SIZES).chain(&NUMBERS).for_each(|w| add(w));
    words
}

fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    // The first words of a list are the common ones, as in any language.
    let at = (rng.f64() * rng.f64() * list.len() as f64) as usize;
    list[at.min(list.len() - 1)]
}

/// A subject with one or several of a noun, perhaps with a place that holds another noun between it and its verb.
fn subject(rng: &mut Rng, plural: bool, distract: bool) -> String {
    let noun = pick(rng, &NOUNS);
    let mut text = "The ".to_string();
    if rng.f32() < 0.5 {
        text += pick(rng, &SIZES);
        text += " ";
    }
    text += if plural { noun.1 } else { noun.0 };
    if distract {
        let other = pick(rng, &NOUNS);
        text += " near the ";
        text += if plural { other.0 } else { other.1 };
    }
    text
}

fn sentence(rng: &mut Rng) -> String {
    let plural = rng.bool();
    match rng.u32(0..6) {
        0 => {
            let distract = rng.f32() < 0.3;
            let (verb, place) = (pick(rng, &VERBS), pick(rng, &PLACES));
            let verb = if plural { verb.1 } else { verb.0 };
            format!("{} {verb} in the {place} .", subject(rng, plural, distract))
        }
        1 => {
            let (action, other) = (pick(rng, &ACTIONS), pick(rng, &NOUNS));
            let action = if plural { action.1 } else { action.0 };
            let other = if rng.bool() { other.0 } else { other.1 };
            let distract = rng.f32() < 0.3;
            format!("{} {action} the {other} .", subject(rng, plural, distract))
        }
        2 => {
            let (name, pronoun, own) = pick(rng, &NAMES);
            let (thing, place, colour) = (pick(rng, &THINGS), pick(rng, &PLACES), pick(rng, &COLOURS));
            let upper = if pronoun == "she" { "She" } else { "He" };
            format!(
                "{name} takes {own} {colour} {thing} and goes to the {place} . {upper} puts the {thing} in the {place} ."
            )
        }
        3 => {
            let (a, b) = (rng.usize(0..10), rng.usize(0..10));
            format!("{} plus {} is {} .", NUMBERS[a], NUMBERS[b], NUMBERS[a + b])
        }
        4 => {
            let (thing, place, other) = (pick(rng, &THINGS), pick(rng, &PLACES), pick(rng, &THINGS));
            let (name, ..) = pick(rng, &NAMES);
            format!(
                "The {thing} is in the {place} . {name} looks at the {other} . Where is the {thing} ? The {thing} is in the {place} ."
            )
        }
        _ => {
            let (name, pronoun, _) = pick(rng, &NAMES);
            let (first, second) = (pick(rng, &VERBS), pick(rng, &VERBS));
            let place = pick(rng, &PLACES);
            format!("{name} {} in the {place} and then {pronoun} {} .", first.0, second.0)
        }
    }
}

/// About this many words of text.
pub fn text(seed: u64, words: usize) -> String {
    let mut rng = Rng::with_seed(seed);
    let (mut out, mut count) = (String::new(), 0);
    while count < words {
        let next = sentence(&mut rng);
        count += next.split(' ').count();
        out += &next;
        out += if rng.u32(0..6) == 0 { "\n" } else { " " };
    }
    out
}

/// Tasks: name, and pairs of a right and a wrong sentence.
#[allow(dead_code)] // What trains the model asks for them, and no test.
pub fn probes(seed: u64, pairs: usize) -> Vec<(&'static str, Vec<(String, String)>)> {
    let mut rng = Rng::with_seed(seed);
    let mut number = |distract: bool| -> Vec<(String, String)> {
        (0..pairs)
            .map(|_| {
                let plural = rng.bool();
                let (subject, verb) = (subject(&mut rng, plural, distract), pick(&mut rng, &VERBS));
                let place = pick(&mut rng, &PLACES);
                let (right, wrong) = if plural { (verb.1, verb.0) } else { (verb.0, verb.1) };
                (format!("{subject} {right} in the {place} ."), format!("{subject} {wrong} in the {place} ."))
            })
            .collect()
    };
    let (plain, distracted) = (number(false), number(true));
    let gender = (0..pairs)
        .map(|_| {
            let (name, pronoun, _) = pick(&mut rng, &NAMES);
            let (first, second, place) = (pick(&mut rng, &VERBS), pick(&mut rng, &VERBS), pick(&mut rng, &PLACES));
            let wrong = if pronoun == "she" { "he" } else { "she" };
            let with = |p: &str| format!("{name} {} in the {place} and then {p} {} .", first.0, second.0);
            (with(pronoun), with(wrong))
        })
        .collect();
    let sums = (0..pairs)
        .map(|_| {
            let (a, b) = (rng.usize(0..10), rng.usize(0..10));
            let off = if a + b == 18 || rng.bool() && a + b > 0 { a + b - 1 } else { a + b + 1 };
            let with = |c: usize| format!("{} plus {} is {} .", NUMBERS[a], NUMBERS[b], NUMBERS[c]);
            (with(a + b), with(off))
        })
        .collect();
    let memory = (0..pairs)
        .map(|_| {
            let (thing, place) = (pick(&mut rng, &THINGS), pick(&mut rng, &PLACES));
            let (other, name) = (pick(&mut rng, &THINGS), pick(&mut rng, &NAMES).0);
            let wrong = PLACES.iter().copied().filter(|p| *p != place).nth(rng.usize(0..PLACES.len() - 1)).unwrap_or("mill");
            let with = |answer: &str| {
                format!(
                    "The {thing} is in the {place} . {name} looks at the {other} . Where is the {thing} ? The {thing} is in the \
                     {answer} ."
                )
            };
            (with(place), with(wrong))
        })
        .collect();
    vec![
        ("number_agreement", plain),
        ("number_agreement_across", distracted),
        ("pronoun_gender", gender),
        ("sums", sums),
        ("memory", memory),
    ]
}
