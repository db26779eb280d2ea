//! Convolutions, pooling, resampling and channel-wise operators, element by element from their definitions.

use super::{Cell, Run, Step, Tensor, constant, indices, mix};
use crate::typed::Argument;

impl Step<'_> {
    fn list_of(&self, name: &str) -> Run<Vec<i64>> {
        self.ints(name)
            .ok_or_else(|| format!("{}: {name} is {:?}", self.node.operator, self.argument(name)))
    }

    fn has(&self, name: &str) -> bool {
        self.node.arguments.iter().any(|argument| argument.name == name)
    }

    /// By the definition: every output position meets an input position for each place of the kernel, or padding.
    pub(super) fn convolve(&self) -> Run<Tensor> {
        let weight = self.tensor("weight")?;
        let axes = weight.shape.len() - 2;
        let given = self.tensor("input")?;
        let unbatched = given.shape.len() == axes + 1;
        let mut input = given.clone();
        if unbatched {
            input.shape.insert(0, 1);
        }
        let transposed = self.node.operator.starts_with("conv_transpose")
            || (self.has("transposed") && self.bool("transposed"));
        let (stride, dilation) = (self.list_of("stride")?, self.list_of("dilation")?);
        let groups = self.int("groups")? as usize;
        let kernel = &weight.shape[2..];
        let reach = |axis: usize| dilation[axis] * (kernel[axis] as i64 - 1);
        let padding: Vec<(i64, i64)> = match self.argument("padding") {
            Argument::Str(mode) if mode == "same" => (0..axes)
                .map(|axis| (reach(axis) / 2, reach(axis) - reach(axis) / 2))
                .collect(),
            Argument::Str(_) => vec![(0, 0); axes],
            _ => self
                .list_of("padding")?
                .into_iter()
                .map(|padding| (padding, padding))
                .collect(),
        };
        let channels = if transposed {
            weight.shape[0]
        } else {
            weight.shape[1] * groups
        };
        if input.shape.len() != axes + 2 || input.shape[1] != channels {
            return Err(format!("{:?} convolved with {:?}", input.shape, weight.shape));
        }
        let mut shape = vec![
            input.shape[0],
            if transposed {
                weight.shape[1] * groups
            } else {
                weight.shape[0]
            },
        ];
        for axis in 0..axes {
            let size = input.shape[axis + 2] as i64;
            let (before, after) = padding[axis];
            shape.push(if transposed {
                let extra = self.list_of("output_padding")?[axis];
                ((size - 1) * stride[axis] - before - after + reach(axis) + extra + 1) as usize
            } else {
                ((size + before + after - reach(axis) - 1) / stride[axis] + 1) as usize
            });
        }
        let (per_input, per_output) = (channels / groups, shape[1] / groups);
        let how = self.how();
        let result = Tensor::from_fn(shape, |at| {
            let group = at[1] / per_output;
            let mut from = Vec::new();
            for place in indices(kernel) {
                let met: Option<Vec<usize>> = (0..axes)
                    .map(|axis| {
                        let (position, place) = (at[axis + 2] as i64, place[axis] as i64 * dilation[axis]);
                        let element = if transposed {
                            let shifted = position + padding[axis].0 - place;
                            (shifted % stride[axis] == 0).then_some(shifted / stride[axis])?
                        } else {
                            position * stride[axis] + place - padding[axis].0
                        };
                        usize::try_from(element)
                            .ok()
                            .filter(|element| *element < input.shape[axis + 2])
                    })
                    .collect();
                let Some(met) = met else { continue };
                for channel in 0..per_input {
                    let own = [&[at[0], group * per_input + channel], met.as_slice()].concat();
                    let weight_at = if transposed {
                        [
                            &[group * per_input + channel, at[1] % per_output],
                            place.as_slice(),
                        ]
                        .concat()
                    } else {
                        [&[at[1], channel], place.as_slice()].concat()
                    };
                    from.extend([input.at(&own), weight.at(&weight_at)]);
                }
            }
            from.extend(self.optional("bias").map(|bias| bias.at(&[at[1]])));
            mix(how, &from)
        });
        Ok(if unbatched {
            Tensor {
                shape: result.shape[1..].to_vec(),
                ..result
            }
        } else {
            result
        })
    }

    /// Each result from the elements of its window.
    pub(super) fn pool(&self) -> Run<Vec<Tensor>> {
        let value = self.tensor("self")?;
        let digit = self
            .node
            .operator
            .chars()
            .find_map(|character| character.to_digit(10));
        let axes = digit.ok_or("no number of axes")? as usize;
        let lead = value.shape.len() - axes;
        let mut windows: Vec<Vec<Vec<usize>>> = Vec::new();
        for axis in 0..axes {
            windows.push(if self.node.operator.starts_with("adaptive") {
                let (size, out) = (
                    value.shape[lead + axis],
                    self.list_of("output_size")?[axis] as usize,
                );
                (0..out)
                    .map(|position| (position * size / out..((position + 1) * size).div_ceil(out)).collect())
                    .collect()
            } else {
                self.windows(value.shape[lead + axis] as i64, axis)?
            });
        }
        let shape: Vec<usize> = value.shape[..lead]
            .iter()
            .copied()
            .chain(windows.iter().map(Vec::len))
            .collect();
        let how = self.how();
        let pooled = Tensor::from_fn(shape, |at| {
            let extents: Vec<usize> = (0..axes)
                .map(|axis| windows[axis][at[lead + axis]].len())
                .collect();
            let cells: Vec<Cell> = indices(&extents)
                .iter()
                .map(|place| {
                    let inside = (0..axes).map(|axis| windows[axis][at[lead + axis]][place[axis]]);
                    value.at(&at[..lead].iter().copied().chain(inside).collect::<Vec<_>>())
                })
                .collect();
            mix(how, &cells)
        });
        let pairs = self.node.outputs.len();
        Ok(vec![pooled; pairs])
    }

    /// Elements of each window along one axis; a last one may hang over the end in ceil mode.
    fn windows(&self, size: i64, axis: usize) -> Run<Vec<Vec<usize>>> {
        let dilation = if self.has("dilation") {
            self.list_of("dilation")?[axis]
        } else {
            1
        };
        let (kernel, stride) = (self.list_of("kernel_size")?[axis], self.list_of("stride")?[axis]);
        let padding = self.list_of("padding")?[axis];
        let room = size + 2 * padding - dilation * (kernel - 1) - 1;
        if room < 0 {
            return Err("the window does not fit".into());
        }
        let mut count = room / stride + 1;
        if self.bool("ceil_mode") {
            count = (room + stride - 1) / stride + 1;
            while (count - 1) * stride >= size + padding {
                count -= 1;
            }
        }
        let window = |position: i64| {
            let places = (0..kernel).map(|place| position * stride + place * dilation - padding);
            places
                .filter(|element| (0..size).contains(element))
                .map(|element| element as usize)
                .collect()
        };
        Ok((0..count).map(window).collect())
    }

    /// Each result from its whole plane: how near its neighbours are does not matter here.
    pub(super) fn upsample(&self) -> Run<Tensor> {
        let value = self.tensor("input")?;
        let mut shape = value.shape.clone();
        match self.argument("scale_factors") {
            Argument::Floats(factors) => {
                for (extent, factor) in shape[2..].iter_mut().zip(factors) {
                    *extent = (*extent as f64 * factor.get()) as usize;
                }
            }
            _ => {
                for (extent, size) in shape[2..].iter_mut().zip(self.list_of("output_size")?) {
                    *extent = size as usize;
                }
            }
        }
        let how = self.how();
        Ok(Tensor::from_fn(shape, |at| {
            mix((how, &at[2..]), &plane(value, &at[..2]))
        }))
    }

    pub(super) fn pad(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let pads = self.list_of("pad")?;
        let rank = value.shape.len();
        let pair = |axis: usize| {
            let place = 2 * (rank - 1 - axis);
            (
                pads.get(place).copied().unwrap_or(0),
                pads.get(place + 1).copied().unwrap_or(0),
            )
        };
        let shape = (0..rank).map(|axis| (value.shape[axis] as i64 + pair(axis).0 + pair(axis).1) as usize);
        let mirrors = self.has("mode") && *self.argument("mode") != Argument::Str("constant".into());
        let how = self.how();
        Ok(Tensor::from_fn(shape.collect(), |at| {
            let own: Option<Vec<usize>> = (0..rank)
                .map(|axis| {
                    let element = at[axis] as i64 - pair(axis).0;
                    usize::try_from(element)
                        .ok()
                        .filter(|element| *element < value.shape[axis])
                })
                .collect();
            match own {
                Some(own) => value.at(&own),
                None if mirrors => {
                    let lead = rank - pads.len() / 2;
                    mix((how, &at[lead..]), &plane(value, &at[..lead]))
                }
                None => constant(how),
            }
        }))
    }

    pub(super) fn pixel_shuffle(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let down = self.node.operator == "pixel_unshuffle";
        let factor = self.int(if down {
            "downscale_factor"
        } else {
            "upscale_factor"
        })? as usize;
        let lead = value.shape.len() - 3;
        let [channels, height, width] = [value.shape[lead], value.shape[lead + 1], value.shape[lead + 2]];
        let square = factor * factor;
        let own = if down {
            [channels * square, height / factor, width / factor]
        } else {
            [channels / square, height * factor, width * factor]
        };
        let shape = [&value.shape[..lead], &own].concat();
        if shape.iter().product::<usize>() != value.cells.len() {
            return Err("the factor does not divide".into());
        }
        Ok(Tensor::from_fn(shape, |at| {
            let [channel, y, x] = [at[lead], at[lead + 1], at[lead + 2]];
            let source = if down {
                let (offset, channel) = (channel % square, channel / square);
                [
                    channel,
                    y * factor + offset / factor,
                    x * factor + offset % factor,
                ]
            } else {
                [
                    channel * square + y % factor * factor + x % factor,
                    y / factor,
                    x / factor,
                ]
            };
            value.at(&[&at[..lead], &source].concat())
        }))
    }

    /// Statistics of one sample's channel, of the whole batch's channel (training), or fixed ones.
    pub(super) fn normalise_channels(&self) -> Run<Tensor> {
        let input = self.tensor("input")?;
        let of_batch = self.node.operator == "batch_norm" && self.bool("training");
        let of_sample = self.node.operator == "instance_norm";
        let fixed: Vec<&Tensor> = ["running_mean", "running_var", "weight", "bias"]
            .iter()
            .filter_map(|name| self.optional(name))
            .collect();
        if fixed.iter().any(|tensor| tensor.shape != [input.shape[1]]) {
            return Err("a statistic has another shape".into());
        }
        let how = self.how();
        let all = indices(&input.shape);
        Ok(Tensor::from_fn(input.shape.clone(), |at| {
            let same =
                |other: &&Vec<usize>| other[1] == at[1] && (of_batch || (of_sample && other[0] == at[0]));
            let group = all.iter().filter(same).map(|other| input.at(other));
            let fixed = fixed.iter().map(|tensor| tensor.at(&[at[1]]));
            let from: Vec<Cell> = std::iter::once(input.at(at)).chain(group).chain(fixed).collect();
            mix((how, &at[1..]), &from)
        }))
    }

    pub(super) fn prelu(&self) -> Run<Tensor> {
        let (input, weight) = (self.tensor("self")?, self.tensor("weight")?);
        let how = self.how();
        Ok(Tensor::from_fn(input.shape.clone(), |at| {
            let slope = if weight.cells.len() == 1 {
                weight.cells[0]
            } else {
                weight.cells[at[1]]
            };
            mix(how, &[input.at(at), slope])
        }))
    }

    /// One draw for each pair of indices of axes 0 and 1: shared when they do not tell samples apart.
    pub(super) fn feature_dropout(&self) -> Run<Tensor> {
        let input = self.tensor("input")?;
        let (how, random) = (self.how(), self.bool("train"));
        Ok(Tensor::from_fn(input.shape.clone(), |at| {
            let mut cell = mix(how, &[input.at(at)]);
            let drawn_for = plane(input, &at[..2])
                .iter()
                .fold(0, |samples, cell| samples | cell.samples);
            let spans_batch = input.shape[..2].iter().any(|extent| extent % self.batch == 0);
            if random && (drawn_for.count_ones() > 1 || (drawn_for == 0 && !spans_batch)) {
                cell.samples |= super::SHARED_RANDOM;
            }
            cell
        }))
    }
}

/// All elements below these leading indices.
fn plane(value: &Tensor, lead: &[usize]) -> Vec<Cell> {
    indices(&value.shape[lead.len()..])
        .iter()
        .map(|rest| value.at(&[lead, rest.as_slice()].concat()))
        .collect()
}
