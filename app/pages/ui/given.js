// The part of a spec that somebody gave.
import { sparse } from "./schema.js";

// A job's spec has all defaults filled in; this is it with only what differs from them.
export function asGiven(spec, capabilities) {
  const found = {};
  for (const field of capabilities.fields) {
    found[field.name] = sparse(spec[field.name], field.parameters.properties[field.name], field.parameters.$defs || {});
  }
  for (const { stage, methods } of capabilities.stages) {
    const one = (value) => {
      const method = methods.find((each) => each.name === value.method);
      return method ? sparse(value, method.parameters, method.parameters.$defs || {}) : value;
    };
    if (spec[stage]) found[stage] = Array.isArray(spec[stage]) ? spec[stage].map(one) : one(spec[stage]);
  }
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined && value !== null && !(typeof value === "object" && Object.keys(value).length === 0)));
}
