//! Special registers that stay the same while a warp runs.

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Clusterid(usize),
    Nclusterid(usize),
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    ClusterCtarank,
    ClusterNctarank,
    ExplicitCluster,
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    MaskEq,
    MaskLe,
    MaskLt,
    MaskGe,
    MaskGt,
    DynamicShared,
    TotalShared,
    WarpSize,
    Zero,
}

impl Special {
    pub(crate) fn parse(name: &str) -> Option<Special> {
        if name == "WARP_SZ" {
            return Some(Special::WarpSize);
        }
        let name = name.strip_prefix('%')?;
        let (base, axis) = match name.split_once('.') {
            Some((base, "x")) => (base, Some(0)),
            Some((base, "y")) => (base, Some(1)),
            Some((base, "z")) => (base, Some(2)),
            Some(_) => return None,
            None => (name, None),
        };
        Some(match (base, axis) {
            ("tid", Some(a)) => Special::Tid(a),
            ("ntid", Some(a)) => Special::Ntid(a),
            ("ctaid", Some(a)) => Special::Ctaid(a),
            ("nctaid", Some(a)) => Special::Nctaid(a),
            ("clusterid", Some(a)) => Special::Clusterid(a),
            ("nclusterid", Some(a)) => Special::Nclusterid(a),
            ("cluster_ctaid", Some(a)) => Special::ClusterCtaid(a),
            ("cluster_nctaid", Some(a)) => Special::ClusterNctaid(a),
            ("cluster_ctarank", None) => Special::ClusterCtarank,
            ("cluster_nctarank", None) => Special::ClusterNctarank,
            ("is_explicit_cluster", None) => Special::ExplicitCluster,
            ("laneid", None) => Special::Laneid,
            ("warpid", None) => Special::Warpid,
            ("nwarpid", None) => Special::Nwarpid,
            ("smid", None) => Special::Smid,
            ("nsmid", None) => Special::Nsmid,
            ("gridid", None) => Special::Gridid,
            ("lanemask_eq", None) => Special::MaskEq,
            ("lanemask_le", None) => Special::MaskLe,
            ("lanemask_lt", None) => Special::MaskLt,
            ("lanemask_ge", None) => Special::MaskGe,
            ("lanemask_gt", None) => Special::MaskGt,
            ("dynamic_smem_size", None) => Special::DynamicShared,
            ("total_smem_size", None) => Special::TotalShared,
            (env, None) if env.starts_with("envreg") => Special::Zero,
            _ => return None,
        })
    }
}
