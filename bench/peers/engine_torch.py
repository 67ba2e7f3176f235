"""PyTorch: training steps, single layers, inference; and the ONNX files for the other engines."""

import re

import engine
import graph
import torch
import torch.nn.functional as F
from torch._inductor import config as inductor

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def training(arguments):
    """One step: forward, cross-entropy with label smoothing, backward, SGD; on random images."""
    description, tensors = graph.read(arguments.file)
    network = graph.Network(description, tensors, arguments.form).train().to(memory_format=LAYOUTS[arguments.layout])
    classes = tensors["classifier.weight"].shape[0]
    images = torch.rand(arguments.batch, *network.input_shape) * 2 - 1
    images = images.contiguous(memory_format=LAYOUTS[arguments.layout])
    labels = torch.arange(arguments.batch) % classes
    kernels = [weight for weight in network.parameters() if weight.dim() > 1]
    others = [weight for weight in network.parameters() if weight.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, **{arguments.optimizer: True})

    def loss_of(images, labels):
        return F.cross_entropy(network(images), labels, label_smoothing=0.1)

    if arguments.mode == "compile":
        loss_of = torch.compile(loss_of, fullgraph=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(images, labels).backward()
        optimizer.step()

    report(arguments, f"{description['name']} b{arguments.batch}", engine.measure(step, arguments))


def layers(arguments):
    """Forward, and forward with both gradients, of single layers."""
    for shape in arguments.shapes:
        batch, filters, size = map(int, re.fullmatch(r"b(\d+) m(\d+) n\2 (\d+)x\3 k3 s1", shape).groups())
        for parts in arguments.parts:
            if parts > 1 or arguments.form == "grouped":
                network = graph.Network(*graph.single_layer(filters, size, parts), arguments.form)
                measure_layer(arguments, f"{shape} p{parts}", network, batch)


def measure_layer(arguments, case, network, batch):
    """Measures one layer."""
    layout = LAYOUTS[arguments.layout]
    network.eval().to(memory_format=layout)
    image = torch.randn(batch, *network.input_shape).contiguous(memory_format=layout)
    torch.compiler.reset()
    run = torch.compile(network, fullgraph=True) if arguments.mode == "compile" else network

    def forward():
        with torch.no_grad():
            run(image)

    report(arguments, f"{case} forward", engine.measure(forward, arguments))
    network.train()
    image.requires_grad_()
    leaves = [image, *network.parameters()]
    gradient = torch.randn_like(network(image))
    both = engine.measure(lambda: torch.autograd.grad(run(image), leaves, gradient), arguments)
    report(arguments, f"{case} forward+backward", both)


def inference(arguments):
    """The network as one would deploy it: batch-norms folded, weights frozen."""
    description, network, images = for_inference(arguments)
    layout = LAYOUTS[arguments.layout]
    network, images = network.to(memory_format=layout), images.contiguous(memory_format=layout)
    with torch.inference_mode():
        if arguments.mode == "freeze":
            network = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, images)))
        elif arguments.mode == "compile":
            inductor.freezing = True
            network = torch.compile(network, fullgraph=True)
        measured = engine.measure(lambda: network(images), arguments)
    report(arguments, f"{description['name']} b{arguments.batch}", measured)


def export(arguments):
    """Writes the same as an ONNX file."""
    description, network, images = for_inference(arguments)
    program = torch.onnx.export(network, (images,), input_names=["images"], output_names=["logits"], verbose=False)
    program.model.graph.name = description["name"]
    program.save(arguments.onnx)


def for_inference(arguments):
    """Graph, network and images."""
    description, tensors = graph.read(arguments.file)
    network = graph.Network(*graph.fold_batch_norms(description, tensors), arguments.form).eval()
    return description, network.requires_grad_(False), torch.rand(arguments.batch, *network.input_shape)


def report(arguments, case, measured):
    """Prints one measurement."""
    engine.report(case, ["torch"], arguments, measured)


def main():
    """Command line."""
    parser = engine.parser(__doc__)
    parser.add_argument("what", choices=["training", "layers", "inference", "export"])
    parser.add_argument("--file", help="the model file (all but layers)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shapes", type=lambda text: text.split(","), help='such as "b16 m64 n64 32x32 k3 s1"')
    parser.add_argument("--parts", type=lambda text: [int(parts) for parts in text.split(",")])
    parser.add_argument("--layout", choices=LAYOUTS, default="nchw")
    parser.add_argument("--mode", choices=["eager", "compile", "freeze"], default="eager")
    parser.add_argument("--form", choices=["grouped", "dense"], default="grouped")
    parser.add_argument("--optimizer", choices=["foreach", "fused"], default="foreach")
    parser.add_argument("--onnx", help="the file to export to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    {"training": training, "layers": layers, "inference": inference, "export": export}[arguments.what](arguments)


if __name__ == "__main__":
    engine.keep_memory()
    main()
