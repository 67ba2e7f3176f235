//! The paper's tables as data: which networks stand in them, and what is published about those.

/// A table of the paper.
pub struct Table {
    pub name: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// Images in a batch when inference is measured; the first is what charts show.
    pub batches: &'static [usize],
    /// Whether its networks are trained here.
    pub is_trained: bool,
    pub rows: &'static [Row],
}

/// A row of a table.
pub struct Row {
    pub network: Network,
    pub published: &'static [Published],
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network of the zoo.
    Named(&'static str),
    /// A network of the zoo with as many filters taken away as bring it down to the MACs of another one, and its
    /// fine-tuning.
    Pruned { of: &'static str, like: &'static str },
    /// Somebody else's network, of which only something published is known.
    Elsewhere(&'static str),
}

/// Something published.
pub struct Published {
    pub figure: Figure,
    pub source: Source,
}

/// What was published.
#[derive(Clone, Copy)]
pub enum Figure {
    /// Top-1 accuracy in per cent.
    Top1(f64),
    /// MACs, which the paper calls FLOPs, that were saved, in per cent.
    FewerMacs(f64),
    /// A statement.
    Words(&'static str),
}

/// Where it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Paper,
    Reimplementation,
}

impl Source {
    /// The sources, in the order of their numbers.
    pub const ALL: [Source; 2] = [Source::Paper, Source::Reimplementation];

    /// As it stands in a list.
    pub fn text(self) -> &'static str {
        match self {
            Source::Paper => {
                "Singh, Verma, Rai, Namboodiri: HetConv: Heterogeneous Kernel-Based Convolutions for Deep CNNs, CVPR 2019, \
                 arXiv 1903.04120"
            }
            Source::Reimplementation => "zhang943/Approximate-HetConv: not masked, 200 epochs",
        }
    }

    /// Its number, from 1.
    pub fn number(self) -> usize {
        1 + self as usize
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.figure {
            Figure::Top1(percent) => write!(f, "{percent:.2} %")?,
            Figure::FewerMacs(percent) => write!(f, "{percent} % fewer FLOPs")?,
            Figure::Words(words) => f.write_str(words)?,
        }
        write!(f, " [{}]", self.source.number())
    }
}

const fn row(network: &'static str, published: &'static [Published]) -> Row {
    Row { network: Network::Named(network), published }
}

const fn paper(figure: Figure) -> Published {
    Published { figure, source: Source::Paper }
}

const fn again(percent: f64) -> Published {
    Published { figure: Figure::Top1(percent), source: Source::Reimplementation }
}

const FEW_FLOPS: Figure = Figure::Words("P32 to P64: about 85 % fewer FLOPs without loss");

/// All tables, in the paper's order.
pub const TABLES: [Table; 7] = [
    Table {
        name: "table1",
        title: "VGG-16 on CIFAR-10",
        about: "HetConv of more and more parts beside the other ways to make a convolution cheaper.",
        batches: &[64, 1],
        is_trained: true,
        rows: &[
            row("vgg16-cifar", &[again(93.88)]),
            row("vgg16-cifar_p2", &[again(94.09)]),
            row("vgg16-cifar_p4", &[paper(Figure::Top1(93.93)), again(93.74)]),
            row("vgg16-cifar_p8", &[again(93.62)]),
            row("vgg16-cifar_p16", &[again(93.53)]),
            row("vgg16-cifar_p32", &[paper(FEW_FLOPS), again(93.06)]),
            row("vgg16-cifar_p64", &[paper(Figure::Top1(93.42)), paper(FEW_FLOPS), again(92.69)]),
            row("vgg16-cifar_pc", &[]),
            row("vgg16-cifar_gwc4_pwc", &[paper(Figure::Top1(92.76))]),
            row("vgg16-cifar_dwc_pwc", &[paper(Figure::Top1(91.27))]),
            row("vgg16-cifar_se", &[]),
            row("vgg16-cifar_p4_se", &[]),
            row("vgg16-cifar_p8_se", &[]),
        ],
    },
    Table {
        name: "table2",
        title: "HetConv against filter pruning on CIFAR-10",
        about: "Pruning by the L1 norm of filters pays twice: a standard network is trained, and trained again after it \
                lost filters. HetConv is trained once.",
        batches: &[64, 1],
        is_trained: true,
        rows: &[
            row("vgg16-cifar", &[]),
            row("vgg16-cifar_p4", &[paper(Figure::Top1(93.93))]),
            row("vgg16-cifar_p64", &[paper(Figure::Top1(93.42)), paper(FEW_FLOPS)]),
            Row { network: Network::Pruned { of: "vgg16-cifar", like: "vgg16-cifar_p4" }, published: &[] },
            row("resnet56", &[]),
            row("resnet56_p4", &[]),
            Row { network: Network::Pruned { of: "resnet56", like: "resnet56_p4" }, published: &[] },
        ],
    },
    Table {
        name: "table3",
        title: "ResNet-56 on CIFAR-10",
        about: "ResNet-20, which the paper does not have, learns fast enough for several seeds. The paper's FLOPs have an \
                addition per output element besides MACs; `hetconv summary --count-additions` counts them too.",
        batches: &[64, 1],
        is_trained: true,
        rows: &[
            row("resnet56", &[paper(Figure::Words("126.01M FLOPs, 2.36M a layer"))]),
            row("resnet56_p2", &[]),
            row("resnet56_p4", &[]),
            row("resnet56_gwc4_pwc", &[]),
            row("resnet56_dwc_pwc", &[]),
            row("resnet20", &[]),
            row("resnet20_p2", &[]),
            row("resnet20_p4", &[]),
            row("resnet20_gwc4_pwc", &[]),
            row("resnet20_dwc_pwc", &[]),
        ],
    },
    Table {
        name: "table4",
        title: "MobileNet on CIFAR-10",
        about: "Each depthwise convolution and the pointwise one behind it become one HetConv layer.",
        batches: &[64, 1],
        is_trained: true,
        rows: &[
            row("mobilenet-cifar", &[]),
            row("mobilenet-cifar_p32", &[paper(Figure::Words("close to 1 point above MobileNet"))]),
            row("mobilenet-cifar_se", &[]),
            row("mobilenet-cifar_p32_se", &[]),
        ],
    },
    Table {
        name: "table5",
        title: "VGG-16 on ImageNet",
        about: NOT_TRAINED,
        batches: &[1],
        is_trained: false,
        rows: &[
            row("vgg16", &[]),
            row("vgg16_p4", &[paper(Figure::FewerMacs(65.8))]),
            Row { network: Network::Elsewhere("channel pruning"), published: &[paper(Figure::FewerMacs(50.0))] },
        ],
    },
    Table {
        name: "table6",
        title: "ResNet-34 on ImageNet",
        about: NOT_TRAINED,
        batches: &[1],
        is_trained: false,
        rows: &[
            row("resnet34", &[]),
            row("resnet34_p4", &[paper(Figure::FewerMacs(64.48))]),
            Row { network: Network::Elsewhere("NISP"), published: &[paper(Figure::FewerMacs(43.76))] },
        ],
    },
    Table {
        name: "table7",
        title: "ResNet-50 on ImageNet",
        about: NOT_TRAINED,
        batches: &[1],
        is_trained: false,
        rows: &[row("resnet50", &[]), row("resnet50_p4", &[])],
    },
];

const NOT_TRAINED: &str = "Costs and times are this program's; accuracy on ImageNet is not trained here.";

#[cfg(test)]
mod tests {
    use super::*;
    use hetconv::graph::ModelName;

    #[test]
    fn every_name_is_one_of_the_zoo_and_stands_once_in_its_table() {
        for table in &TABLES {
            for (i, row) in table.rows.iter().enumerate() {
                assert!(table.rows[..i].iter().all(|other| other.network != row.network), "{:?}", row.network);
                match row.network {
                    Network::Named(name) => assert_eq!(name.parse::<ModelName>().unwrap().to_string(), name),
                    Network::Pruned { of, like } => {
                        let has = |name| table.rows.iter().any(|row| row.network == Network::Named(name));
                        assert!(has(of) && has(like), "{of} {like}");
                    }
                    Network::Elsewhere(_) => assert!(!row.published.is_empty()),
                }
            }
        }
    }
}
