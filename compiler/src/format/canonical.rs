//! The canonical form of a format: the few shapes of scale and zero that compute packings carry.
