//! Where graphs run.

use std::{fmt, str::FromStr};

/// Where graphs are asked to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    #[default]
    Cpu,
    /// On the CUDA device of this number.
    Cuda(u16),
    /// On the first CUDA device, or on the processor where that cannot be used.
    Auto,
}

impl FromStr for Device {
    type Err = String;

    /// Reads `cpu`, `cuda`, `cuda:N` or `auto`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "auto" => Ok(Self::Auto),
            Some(("cuda", number)) => number
                .parse()
                .map(Self::Cuda)
                .map_err(|_| format!("cuda:{number} is no device; cuda:0 is the first")),
            _ => Err("cpu, cuda, cuda:N or auto".into()),
        }
    }
}

/// Where graphs do run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the processor.
    Cpu,
    /// On the CUDA device of this number.
    Cuda(u16),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("auto", Device::Auto),
        ] {
            assert_eq!(text.parse(), Ok(device), "{text}");
        }
        for text in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:99999", "cpu:0"] {
            let error = text.parse::<Device>().unwrap_err();
            assert!(error.contains("cuda"), "{text}: {error}");
        }
    }

    #[test]
    fn places_have_the_names_of_devices() {
        for (place, device) in [(Place::Cpu, Device::Cpu), (Place::Cuda(2), Device::Cuda(2))] {
            assert_eq!(place.to_string().parse(), Ok(device));
        }
    }
}
