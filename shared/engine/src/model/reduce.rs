use shoal_core::frame::WireType;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ReduceError;
#[derive(Debug, Default)]
pub struct Scratch;
pub fn encode(_: WireType, _x: &[f32], _: usize, _: usize, _out: &mut Vec<u8>) -> Result<(), ReduceError> {
    Err(ReduceError)
}
pub fn sum(
    _: WireType,
    _p: &[&[u8]],
    _: usize,
    _: usize,
    _s: &mut Scratch,
    _out: &mut [f32],
) -> Result<(), ReduceError> {
    Err(ReduceError)
}
