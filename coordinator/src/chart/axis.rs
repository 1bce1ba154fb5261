//! Scales: round steps that people read easily.

/// An axis from zero to a round number above the largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    pub(super) step: f64,
    pub(super) top: f64,
}

impl Axis {
    /// About four steps of 1, 2 or 5 times a power of ten. A largest value that is no positive number gives 0 to 1.
    pub(super) fn to(largest: f64) -> Self {
        if !(largest.is_finite() && largest > 0.0) {
            return Self { step: 0.5, top: 1.0 };
        }
        let rough = largest / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(10.0 * power);
        Self { step, top: (largest / step - 1e-9).ceil() * step }
    }

    /// The marks, zero first.
    pub(super) fn marks(self) -> impl Iterator<Item = f64> {
        let count = (self.top / self.step).round() as u32;
        (0..=count).map(move |at| f64::from(at) * self.step)
    }

    /// A mark's text, with as many decimals as the step has.
    pub(super) fn label(self, mark: f64) -> String {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{mark:.decimals$}")
    }
}

/// A value in few digits: three that mean something.
pub(super) fn value(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.0995 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above_the_largest_value() {
        for (largest, step, top) in
            [(3.7, 1.0, 4.0), (4.0, 1.0, 4.0), (83.0, 50.0, 100.0), (0.9, 0.5, 1.0), (1234.0, 500.0, 1500.0)]
        {
            let axis = Axis::to(largest);
            assert!((axis.step - step).abs() < 1e-9 && (axis.top - top).abs() < 1e-9, "{largest}: {axis:?}");
            assert!(axis.top >= largest);
        }
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Axis::to(bad).top, 1.0);
        }
    }

    #[test]
    fn marks_have_the_decimals_of_their_step() {
        let axis = Axis::to(0.9);
        assert_eq!(axis.marks().map(|mark| axis.label(mark)).collect::<Vec<_>>(), ["0.0", "0.5", "1.0"]);
        assert_eq!(Axis::to(83.0).label(50.0), "50");
        assert_eq!([0.0123, 1.234, 12.34, 123.4].map(value), ["0.012", "1.23", "12.3", "123"]);
    }
}
