// JSON objects as google.protobuf.Struct, in the form that @grpc/proto-loader has them.
"use strict";

function toStruct(object) {
  const fields = {};
  for (const [key, value] of Object.entries(object)) fields[key] = toValue(value);
  return { fields };
}

function fromStruct(struct) {
  const object = {};
  for (const [key, value] of Object.entries(struct?.fields ?? {})) object[key] = fromValue(value);
  return object;
}

function toValue(value) {
  if (value === null || value === undefined) return { nullValue: "NULL_VALUE" };
  if (typeof value === "boolean") return { boolValue: value };
  if (typeof value === "number") return { numberValue: value };
  if (typeof value === "string") return { stringValue: value };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  return { structValue: toStruct(value) };
}

function fromValue(value) {
  switch (value.kind) {
    case "structValue":
      return fromStruct(value.structValue);
    case "listValue":
      return value.listValue.values.map(fromValue);
    case "nullValue":
      return null;
    default:
      return value[value.kind];
  }
}

module.exports = { fromStruct, toStruct };
