//! What the compiler is to keep in a register of its own.
//!
//! It sees which addresses differ by a known number, and then computes one from another: instructions in loops where every
//! instruction counts, or more addresses than there are registers.

/// A number or an address that fits a register.
pub(crate) trait Register {
    /// The same value, of which the compiler knows nothing.
    fn in_a_register(self) -> Self;
}

macro_rules! register {
    ($($type:ty)*) => {
        $(impl Register for $type {
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::pointers_in_nomem_asm_block)]
            fn in_a_register(mut self) -> Self {
                // SAFETY: no instruction, so none that reads where an address points to.
                unsafe { std::arch::asm!("/* {0} */", inout(reg) self, options(pure, nomem, preserves_flags, nostack)) };
                self
            }

            /// With registers enough.
            #[inline(always)]
            #[cfg(not(target_arch = "x86_64"))]
            fn in_a_register(self) -> Self {
                self
            }
        })*
    };
}
register!(isize usize *const f32);
