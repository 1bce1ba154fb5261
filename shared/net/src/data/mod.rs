//! x
pub struct DataPlane;
pub struct BlockKey;
