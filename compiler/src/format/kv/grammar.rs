//! The grammar of KV cache formats: `int8-head`, `int4-group32-asym`, `int4-channel.int4-token+64`.
//!
//! Reads a name, makes a [`KvFormat`], and back. Always holds: `parse(print(f)) == f`.
//!
//! ```text
//! format      = codes [ "." codes ] [ "+" window ]        keys, values (like the keys if absent), newest tokens in f16
//! codes       = "f16" | "bf16" | code "-" granularity { "-" modifier }
//! code        = int8 | int4 | fp8e4m3 | fp8e4m3fnuz | fp8e5m2
//! granularity = tensor | head | token | group<16|32|64|128> | channel (keys only)
//! modifier    = asym | dq
//! ```

use super::{KvCode, KvCodes, KvFormat, KvPer};
use crate::error::{Error, Result};
use std::fmt::{Display, Formatter};
use std::str::FromStr;

const ACCEPTED: &str = "f16, bf16, or int8, int4, fp8e4m3, fp8e4m3fnuz, fp8e5m2 with -tensor, -head, -token, \
                        -group<16|32|64|128> or -channel, then -asym or -dq; <keys>.<values>; +<tokens> in f16";

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<KvFormat> {
        let text = name.trim().to_ascii_lowercase();
        let bad = |why: String| Error::invalid(format!("KV format `{name}`: {why}; accepted: {ACCEPTED}"));
        let (codes, window) = match text.split_once('+') {
            Some((codes, window)) => {
                let tokens = window.parse::<u32>().map_err(|_| bad(format!("`{window}` is no number of tokens")))?;
                (codes, tokens)
            }
            None => (text.as_str(), 0),
        };
        let (k, v) = codes.split_once('.').unwrap_or((codes, codes));
        let format = KvFormat { k: side(k).map_err(bad)?, v: side(v).map_err(bad)?, window };
        let faults = format.faults();
        if faults.is_empty() {
            Ok(format)
        } else {
            Err(Error::Invalid(faults.iter().map(|fault| format!("KV format `{name}`: {fault}")).collect()))
        }
    }
}

fn side(text: &str) -> std::result::Result<KvCodes, String> {
    let mut words = text.split('-');
    let first = words.next().unwrap_or_default();
    let code = KvCode::ALL.into_iter().find(|code| code.name() == first);
    let code = code.ok_or_else(|| format!("`{first}` is no code"))?;
    let mut codes = KvCodes { code, per: KvPer::Tensor, asymmetric: false, two_level: false };
    let mut named = false;
    for word in words {
        let per = match word {
            "tensor" => Some(KvPer::Tensor),
            "head" => Some(KvPer::Head),
            "token" => Some(KvPer::Token),
            "channel" => Some(KvPer::Channel),
            _ => word.strip_prefix("group").and_then(|g| g.parse().ok()).map(KvPer::Group),
        };
        match (per, word) {
            (Some(_), _) if named => return Err("a granularity is named twice".into()),
            (Some(_), _) if code.is_plain() => return Err(format!("{first} has no scale, so no granularity")),
            (Some(per), _) => {
                codes.per = per;
                named = true;
            }
            (None, "asym") if !codes.asymmetric => codes.asymmetric = true,
            (None, "dq") if !codes.two_level => codes.two_level = true,
            (None, _) => return Err(format!("unknown word `{word}`")),
        }
    }
    if !named && !code.is_plain() { Err("no granularity is named".into()) } else { Ok(codes) }
}

impl Display for KvCodes {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code.name())?;
        if self.code.is_plain() {
            return Ok(());
        }
        match self.per {
            KvPer::Tensor => f.write_str("-tensor"),
            KvPer::Head => f.write_str("-head"),
            KvPer::Token => f.write_str("-token"),
            KvPer::Group(g) => write!(f, "-group{g}"),
            KvPer::Channel => f.write_str("-channel"),
        }?;
        f.write_str(if self.asymmetric { "-asym" } else { "" })?;
        f.write_str(if self.two_level { "-dq" } else { "" })
    }
}

impl Display for KvFormat {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let values = if self.v == self.k { String::new() } else { format!(".{}", self.v) };
        let window = if self.window == 0 { String::new() } else { format!("+{}", self.window) };
        f.pad(&format!("{}{values}{window}", self.k))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in KvFormat::NAMED {
            let format: KvFormat = name.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(format.to_string(), name);
            assert_eq!(format.to_string().parse::<KvFormat>().unwrap(), format);
        }
    }

    #[test]
    fn refusals_say_what_is_accepted() {
        for (name, part) in [
            ("int9-head", "`int9` is no code"),
            ("int8", "no granularity"),
            ("int8-head-token", "twice"),
            ("f16-head", "no scale"),
            ("fp8e4m3-token-asym", "symmetric"),
            ("int4-group33", "groups of 33"),
            ("int4-channel", "add a window"),
            ("int8-token.int8-channel+64", "for keys"),
            ("int8-token-dq", "two levels"),
            ("int8-token+many", "no number of tokens"),
        ] {
            let error = name.parse::<KvFormat>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(name), "{name}: {error}");
        }
    }
}
