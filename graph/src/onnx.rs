//! ONNX's protobuf messages, every field of `onnx-ml.proto` (IR version 14, PyPI package `onnx` 1.23).
//!
//! prost drops what it does not know, so the messages are complete: a model that is decoded and encoded again
//! is the same model, whatever it carries beside the graph. Field numbers are those of the schema.

use bytes::Bytes;
use prost::{Message, Oneof};

/// Element types, `TensorProto.DataType`.
pub mod data_type {
    /// 32-bit float.
    pub const FLOAT: i32 = 1;
    /// 8-bit unsigned integer.
    pub const UINT8: i32 = 2;
    /// 8-bit integer.
    pub const INT8: i32 = 3;
    /// 32-bit integer.
    pub const INT32: i32 = 6;
    /// 64-bit integer.
    pub const INT64: i32 = 7;
    /// Boolean, one byte.
    pub const BOOL: i32 = 9;
    /// IEEE 754 half.
    pub const FLOAT16: i32 = 10;
    /// 64-bit float.
    pub const DOUBLE: i32 = 11;
    /// bfloat16.
    pub const BFLOAT16: i32 = 16;
    /// 4-bit unsigned integer, two in a byte, the first one in its lower half.
    pub const UINT4: i32 = 21;
    /// 4-bit integer, packed alike.
    pub const INT4: i32 = 22;
}

/// Kinds of attribute, `AttributeProto.AttributeType`.
pub mod attribute_type {
    /// One float.
    pub const FLOAT: i32 = 1;
    /// One integer.
    pub const INT: i32 = 2;
    /// One byte string.
    pub const STRING: i32 = 3;
    /// One tensor.
    pub const TENSOR: i32 = 4;
    /// A list of integers.
    pub const INTS: i32 = 7;
}

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $prost:tt;)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$field_doc])* #[prost $prost] pub $field: $kind,)* }
    };
}

message!(
    /// A key and a value, both text.
    StringStringEntryProto {
        key: Option<String> = (string, optional, tag = "1");
        value: Option<String> = (string, optional, tag = "2");
    }
);
message!(
    /// The version of an operator set.
    OperatorSetIdProto {
        domain: Option<String> = (string, optional, tag = "1");
        version: Option<i64> = (int64, optional, tag = "2");
    }
);
message!(
    /// A model: a graph and what surrounds it.
    ModelProto {
        ir_version: Option<i64> = (int64, optional, tag = "1");
        producer_name: Option<String> = (string, optional, tag = "2");
        producer_version: Option<String> = (string, optional, tag = "3");
        domain: Option<String> = (string, optional, tag = "4");
        model_version: Option<i64> = (int64, optional, tag = "5");
        doc_string: Option<String> = (string, optional, tag = "6");
        graph: Option<GraphProto> = (message, optional, tag = "7");
        opset_import: Vec<OperatorSetIdProto> = (message, repeated, tag = "8");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "14");
        training_info: Vec<TrainingInfoProto> = (message, repeated, tag = "20");
        functions: Vec<FunctionProto> = (message, repeated, tag = "25");
        configuration: Vec<DeviceConfigurationProto> = (message, repeated, tag = "26");
    }
);
message!(
    /// How to initialise and train a model.
    TrainingInfoProto {
        initialization: Option<GraphProto> = (message, optional, tag = "1");
        algorithm: Option<GraphProto> = (message, optional, tag = "2");
        initialization_binding: Vec<StringStringEntryProto> = (message, repeated, tag = "3");
        update_binding: Vec<StringStringEntryProto> = (message, repeated, tag = "4");
    }
);
message!(
    /// A named set of devices.
    DeviceConfigurationProto {
        name: Option<String> = (string, optional, tag = "1");
        num_devices: Option<i32> = (int32, optional, tag = "2");
        device: Vec<String> = (string, repeated, tag = "3");
    }
);
message!(
    /// A function of the model's own.
    FunctionProto {
        name: Option<String> = (string, optional, tag = "1");
        input: Vec<String> = (string, repeated, tag = "4");
        output: Vec<String> = (string, repeated, tag = "5");
        attribute: Vec<String> = (string, repeated, tag = "6");
        node: Vec<NodeProto> = (message, repeated, tag = "7");
        doc_string: Option<String> = (string, optional, tag = "8");
        opset_import: Vec<OperatorSetIdProto> = (message, repeated, tag = "9");
        domain: Option<String> = (string, optional, tag = "10");
        attribute_proto: Vec<AttributeProto> = (message, repeated, tag = "11");
        value_info: Vec<ValueInfoProto> = (message, repeated, tag = "12");
        overload: Option<String> = (string, optional, tag = "13");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "14");
    }
);
message!(
    /// Nodes in topological order, with the graph's inputs, outputs and initializers.
    GraphProto {
        node: Vec<NodeProto> = (message, repeated, tag = "1");
        name: Option<String> = (string, optional, tag = "2");
        initializer: Vec<TensorProto> = (message, repeated, tag = "5");
        doc_string: Option<String> = (string, optional, tag = "10");
        input: Vec<ValueInfoProto> = (message, repeated, tag = "11");
        output: Vec<ValueInfoProto> = (message, repeated, tag = "12");
        value_info: Vec<ValueInfoProto> = (message, repeated, tag = "13");
        quantization_annotation: Vec<TensorAnnotation> = (message, repeated, tag = "14");
        sparse_initializer: Vec<SparseTensorProto> = (message, repeated, tag = "15");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "16");
    }
);
message!(
    /// Quantisation parameters of one tensor.
    TensorAnnotation {
        tensor_name: Option<String> = (string, optional, tag = "1");
        quant_parameter_tensor_names: Vec<StringStringEntryProto> = (message, repeated, tag = "2");
    }
);
message!(
    /// One operator applied to named values.
    NodeProto {
        input: Vec<String> = (string, repeated, tag = "1");
        output: Vec<String> = (string, repeated, tag = "2");
        name: Option<String> = (string, optional, tag = "3");
        op_type: Option<String> = (string, optional, tag = "4");
        attribute: Vec<AttributeProto> = (message, repeated, tag = "5");
        doc_string: Option<String> = (string, optional, tag = "6");
        domain: Option<String> = (string, optional, tag = "7");
        overload: Option<String> = (string, optional, tag = "8");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "9");
        device_configurations: Vec<NodeDeviceConfigurationProto> = (message, repeated, tag = "10");
    }
);
message!(
    /// Where one node runs.
    NodeDeviceConfigurationProto {
        configuration_id: Option<String> = (string, optional, tag = "1");
        sharding_spec: Vec<ShardingSpecProto> = (message, repeated, tag = "2");
        pipeline_stage: Option<i32> = (int32, optional, tag = "3");
    }
);
message!(
    /// How one tensor is split over devices.
    ShardingSpecProto {
        tensor_name: Option<String> = (string, optional, tag = "1");
        device: Vec<i64> = (int64, repeated, packed = "false", tag = "2");
        index_to_device_group_map: Vec<IntIntListEntryProto> = (message, repeated, tag = "3");
        sharded_dim: Vec<ShardedDimProto> = (message, repeated, tag = "4");
    }
);
message!(
    /// A key with a list of integers.
    IntIntListEntryProto {
        key: Option<i64> = (int64, optional, tag = "1");
        value: Vec<i64> = (int64, repeated, packed = "false", tag = "2");
    }
);
message!(
    /// A split dimension.
    ShardedDimProto {
        axis: Option<i64> = (int64, optional, tag = "1");
        simple_sharding: Vec<SimpleShardedDimProto> = (message, repeated, tag = "2");
    }
);
message!(
    /// A dimension split evenly.
    SimpleShardedDimProto {
        dim: Option<ShardedSize> = (oneof = "ShardedSize", tags = "1, 2");
        num_shards: Option<i64> = (int64, optional, tag = "3");
    }
);
message!(
    /// A named, typed constant of an operator.
    AttributeProto {
        name: Option<String> = (string, optional, tag = "1");
        f: Option<f32> = (float, optional, tag = "2");
        i: Option<i64> = (int64, optional, tag = "3");
        s: Option<Bytes> = (bytes = "bytes", optional, tag = "4");
        t: Option<TensorProto> = (message, optional, tag = "5");
        g: Option<GraphProto> = (message, optional, tag = "6");
        floats: Vec<f32> = (float, repeated, packed = "false", tag = "7");
        ints: Vec<i64> = (int64, repeated, packed = "false", tag = "8");
        strings: Vec<Bytes> = (bytes = "bytes", repeated, tag = "9");
        tensors: Vec<TensorProto> = (message, repeated, tag = "10");
        graphs: Vec<GraphProto> = (message, repeated, tag = "11");
        doc_string: Option<String> = (string, optional, tag = "13");
        tp: Option<TypeProto> = (message, optional, tag = "14");
        type_protos: Vec<TypeProto> = (message, repeated, tag = "15");
        r#type: Option<i32> = (int32, optional, tag = "20");
        ref_attr_name: Option<String> = (string, optional, tag = "21");
        sparse_tensor: Option<SparseTensorProto> = (message, optional, tag = "22");
        sparse_tensors: Vec<SparseTensorProto> = (message, repeated, tag = "23");
    }
);
message!(
    /// A named value and its type.
    ValueInfoProto {
        name: Option<String> = (string, optional, tag = "1");
        r#type: Option<TypeProto> = (message, optional, tag = "2");
        doc_string: Option<String> = (string, optional, tag = "3");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "4");
    }
);
message!(
    /// A type.
    TypeProto {
        value: Option<TypeValue> = (oneof = "TypeValue", tags = "1, 4, 5, 7, 8, 9");
        denotation: Option<String> = (string, optional, tag = "6");
    }
);
message!(
    /// A tensor's element type and shape.
    TensorType {
        elem_type: Option<i32> = (int32, optional, tag = "1");
        shape: Option<TensorShapeProto> = (message, optional, tag = "2");
    }
);
message!(
    /// A sequence or an optional of another type.
    ElementType {
        elem_type: Option<Box<TypeProto>> = (message, optional, boxed, tag = "1");
    }
);
message!(
    /// A map's key and value types.
    MapType {
        key_type: Option<i32> = (int32, optional, tag = "1");
        value_type: Option<Box<TypeProto>> = (message, optional, boxed, tag = "2");
    }
);
message!(
    /// A type that only its domain knows.
    OpaqueType {
        domain: Option<String> = (string, optional, tag = "1");
        name: Option<String> = (string, optional, tag = "2");
    }
);
message!(
    /// A shape, dimension by dimension.
    TensorShapeProto {
        dim: Vec<Dimension> = (message, repeated, tag = "1");
    }
);
message!(
    /// One dimension: a size or a symbol.
    Dimension {
        value: Option<DimensionValue> = (oneof = "DimensionValue", tags = "1, 2");
        denotation: Option<String> = (string, optional, tag = "3");
    }
);
message!(
    /// A tensor of constants, inline or in a file beside the model.
    TensorProto {
        dims: Vec<i64> = (int64, repeated, packed = "false", tag = "1");
        data_type: Option<i32> = (int32, optional, tag = "2");
        segment: Option<Segment> = (message, optional, tag = "3");
        float_data: Vec<f32> = (float, repeated, tag = "4");
        int32_data: Vec<i32> = (int32, repeated, tag = "5");
        string_data: Vec<Bytes> = (bytes = "bytes", repeated, tag = "6");
        int64_data: Vec<i64> = (int64, repeated, tag = "7");
        name: Option<String> = (string, optional, tag = "8");
        raw_data: Option<Bytes> = (bytes = "bytes", optional, tag = "9");
        double_data: Vec<f64> = (double, repeated, tag = "10");
        uint64_data: Vec<u64> = (uint64, repeated, tag = "11");
        doc_string: Option<String> = (string, optional, tag = "12");
        external_data: Vec<StringStringEntryProto> = (message, repeated, tag = "13");
        data_location: Option<i32> = (int32, optional, tag = "14");
        metadata_props: Vec<StringStringEntryProto> = (message, repeated, tag = "16");
    }
);
message!(
    /// A part of a large tensor.
    Segment {
        begin: Option<i64> = (int64, optional, tag = "1");
        end: Option<i64> = (int64, optional, tag = "2");
    }
);
message!(
    /// A sparse tensor: values at indices.
    SparseTensorProto {
        values: Option<TensorProto> = (message, optional, tag = "1");
        indices: Option<TensorProto> = (message, optional, tag = "2");
        dims: Vec<i64> = (int64, repeated, packed = "false", tag = "3");
    }
);

/// The size of a split dimension.
#[derive(Clone, PartialEq, Oneof)]
#[allow(missing_docs)]
pub enum ShardedSize {
    #[prost(int64, tag = "1")]
    DimValue(i64),
    #[prost(string, tag = "2")]
    DimParam(String),
}

/// What a type is.
#[derive(Clone, PartialEq, Oneof)]
#[allow(missing_docs)]
pub enum TypeValue {
    #[prost(message, tag = "1")]
    Tensor(TensorType),
    #[prost(message, tag = "4")]
    Sequence(ElementType),
    #[prost(message, tag = "5")]
    Map(MapType),
    #[prost(message, tag = "7")]
    Opaque(OpaqueType),
    #[prost(message, tag = "8")]
    SparseTensor(TensorType),
    #[prost(message, tag = "9")]
    Optional(ElementType),
}

/// A dimension's size, or the symbol that stands for it.
#[derive(Clone, PartialEq, Oneof)]
#[allow(missing_docs)]
pub enum DimensionValue {
    #[prost(int64, tag = "1")]
    Size(i64),
    #[prost(string, tag = "2")]
    Symbol(String),
}

impl NodeProto {
    /// The node's name for messages: its own, or that of its first output.
    pub fn label(&self) -> &str {
        match self.name() {
            "" => self.output.first().map_or("", String::as_str),
            name => name,
        }
    }

    /// The operator with its domain, as in `com.microsoft:FusedMatMul`; ONNX's own domain is left out.
    pub fn operator(&self) -> String {
        match self.domain() {
            "" | "ai.onnx" => self.op_type().to_owned(),
            domain => format!("{domain}:{}", self.op_type()),
        }
    }

    /// The `index`-th input; `None` where it is left out.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.input
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|entry| entry.name() == name)
    }

    /// An integer attribute, or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, AttributeProto::i)
    }

    /// A float attribute, or its default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, AttributeProto::f)
    }

    /// A list of integers, where the attribute is there.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|entry| entry.ints.as_slice())
    }

    /// A text attribute, or its default.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.attribute(name)
            .and_then(|entry| std::str::from_utf8(entry.s.as_ref()?).ok())
            .unwrap_or(default)
    }
}

impl ValueInfoProto {
    /// A tensor value; each dimension a size or, where it is no number, a symbol.
    pub fn tensor(name: &str, elem_type: i32, dims: &[&str]) -> Self {
        let dim = dims.iter().map(|text| Dimension {
            value: Some(match text.parse() {
                Ok(size) => DimensionValue::Size(size),
                Err(_) => DimensionValue::Symbol((*text).to_owned()),
            }),
            denotation: None,
        });
        let tensor = TensorType {
            elem_type: Some(elem_type),
            shape: Some(TensorShapeProto { dim: dim.collect() }),
        };
        let value = Some(TypeValue::Tensor(tensor));
        Self {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto {
                value,
                denotation: None,
            }),
            ..Self::default()
        }
    }

    /// A value of whatever type and shape it turns out to have.
    pub fn untyped(name: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// The tensor type, where the value is a tensor.
    pub fn tensor_type(&self) -> Option<&TensorType> {
        match self.r#type.as_ref()?.value.as_ref()? {
            TypeValue::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The tensor type to change, where the value is a tensor.
    pub fn tensor_type_mut(&mut self) -> Option<&mut TensorType> {
        match self.r#type.as_mut()?.value.as_mut()? {
            TypeValue::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The dimensions, where the value is a tensor with a declared shape.
    pub fn dims(&self) -> Option<&[Dimension]> {
        Some(&self.tensor_type()?.shape.as_ref()?.dim)
    }
}

impl GraphProto {
    /// The initializer of that name.
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.initializer.iter().find(|tensor| tensor.name() == name)
    }
}

impl ModelProto {
    /// The version of ONNX's own operator set.
    pub fn opset(&self) -> i64 {
        self.opset_import
            .iter()
            .find(|entry| matches!(entry.domain(), "" | "ai.onnx"))
            .map_or(1, OperatorSetIdProto::version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_to_the_graph_survives_a_round_trip() {
        let model = ModelProto {
            ir_version: Some(10),
            metadata_props: vec![StringStringEntryProto {
                key: Some("author".into()),
                value: Some("someone".into()),
            }],
            configuration: vec![DeviceConfigurationProto {
                name: Some("two".into()),
                num_devices: Some(2),
                device: vec!["a".into(), "b".into()],
            }],
            graph: Some(GraphProto {
                initializer: vec![TensorProto {
                    dims: vec![2],
                    data_type: Some(data_type::FLOAT),
                    raw_data: Some(Bytes::from_static(&[0; 8])),
                    ..TensorProto::default()
                }],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let bytes = model.encode_to_vec();
        let again = ModelProto::decode(bytes.as_slice()).unwrap();
        assert_eq!(again, model);
        assert_eq!(again.encode_to_vec(), bytes);
    }
}
