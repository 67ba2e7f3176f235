//! Selection of channels and of every n-th pixel.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use hetconv_kernels::select::Select;

use crate::Implementation;
use crate::kernel::{Kernel, apply, tensor, values};
use crate::selection::Selection;

/// Channels of a result, each a copy of one of the operand's or zeros, at every n-th row and column.
#[derive(Clone, Debug)]
pub struct SelectOp(Form);

#[derive(Clone, Debug)]
enum Form {
    Kernels(Arc<Select>),
    Composed { selection: Selection, zeros: bool, stride: usize },
}

impl SelectOp {
    /// A selection computed by `implementation`.
    pub fn new(select: Select, implementation: Implementation) -> Self {
        Self(match implementation {
            Implementation::Kernels(_) => Form::Kernels(Arc::new(select)),
            Implementation::Composed => {
                // A channel of zeros stands behind the operand's.
                let zeros = select.sources().contains(&None);
                let sources: Vec<u32> =
                    select.sources().iter().map(|source| source.unwrap_or(select.channels() as u32)).collect();
                let selection = Selection::new(&sources, select.channels() + usize::from(zeros));
                Form::Composed { selection, zeros, stride: select.stride() }
            }
        })
    }

    /// # Shapes
    /// * `input`: `[batch, height, width, channels]`
    /// * result: `[batch, out height, out width, sources]`
    ///
    /// # Panics
    /// If the image size is another one, or the implementation is not one for the device.
    pub fn forward(&self, mut input: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            Form::Kernels(select) => {
                Tensor::from_dispatch(apply(SelectKernel(select.clone()), [input.into_dispatch()]).0)
            }
            Form::Composed { selection, zeros, stride } => {
                if *stride > 1 {
                    let step = *stride as isize;
                    input = input.slice(burn::tensor::s![.., ..;step, ..;step, ..]);
                }
                if *zeros {
                    let [batch, height, width, _] = input.dims();
                    let zero = Tensor::zeros([batch, height, width, 1], &input.device().inner());
                    input = Tensor::cat(vec![input, zero], 3);
                }
                selection.apply(input, 3)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct SelectKernel(Arc<Select>);

impl Kernel<1> for SelectKernel {
    /// Images of the batch.
    type Saved = usize;
    type Side = ();

    fn forward(&self, [input]: &[FlexTensor; 1]) -> (FlexTensor, (), usize) {
        let batch = input.layout().shape()[0];
        let [height, width] = self.0.out_size();
        let output = self.0.forward(batch, values(input));
        (tensor(output, [batch, height, width, self.0.sources().len()]), (), batch)
    }

    fn backward(&self, batch: usize, grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let [height, width] = self.0.in_size();
        let grad_input = self.0.backward(batch, values(&grad));
        [Some(tensor(grad_input, [batch, height, width, self.0.channels()]))]
    }
}
