// Compares what a daemon says with what src/index.d.ts says that it says.
import { readFileSync } from "node:fs";

import ts from "typescript";

const path = new URL("../src/index.d.ts", import.meta.url);
const source = ts.createSourceFile("index.d.ts", readFileSync(path, "utf8"), ts.ScriptTarget.ES2022, true);
const declared = new Map();
source.forEachChild((node) => {
  if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) declared.set(node.name.text, node);
});
const K = ts.SyntaxKind;

/** What is wrong with a value of the type of that name, as texts: a field too many, one too few, one of another type. */
export function wrongs(value, name) {
  return ofName(value, name, [], name);
}

/** The methods that the declarations give a class. */
export function methodsOf(name) {
  const found = source.statements.find((node) => ts.isClassDeclaration(node) && node.name.text === name);
  return found.members.filter(ts.isMethodDeclaration).map((member) => member.name.getText(source));
}

function ofName(value, name, args, at) {
  if (name === "Tensor" || name === "Floats") {
    const kind = name === "Floats" ? "Float32Array" : args[0].getText(source);
    const fits = value?.constructor?.name === kind && Array.isArray(value.shape);
    return fits && value.shape.reduce((product, size) => product * size, 1) === value.length ? [] : [`${at}: no ${kind} with a shape`];
  }
  if (name === "Record") {
    if (!isMap(value)) return [`${at}: no map`];
    return Object.entries(value).flatMap(([key, item]) => ofType(item, args[1], `${at}.${key}`));
  }
  const node = declared.get(name);
  if (node === undefined) throw new Error(`${at}: the type ${name} is not known here`);
  if (ts.isTypeAliasDeclaration(node)) return ofType(value, node.type, at);
  return ofMembers(value, members(node), at);
}

function members(node) {
  const inherited = (node.heritageClauses ?? []).flatMap((clause) => clause.types.map((type) => declared.get(type.expression.text)));
  return [...inherited.flatMap(members), ...node.members];
}

function ofMembers(value, list, at) {
  if (!isMap(value)) return [`${at}: no map but ${JSON.stringify(value)}`];
  const open = list.some(ts.isIndexSignatureDeclaration);
  const known = new Map(list.filter(ts.isPropertySignature).map((member) => [member.name.getText(source), member]));
  const found = Object.keys(value).filter((key) => !open && !known.has(key)).map((key) => `${at}.${key}: not declared`);
  for (const [key, member] of known) {
    if (key in value) found.push(...ofType(value[key], member.type, `${at}.${key}`));
    else if (!member.questionToken) found.push(`${at}.${key}: missing`);
  }
  return found;
}

function ofType(value, type, at) {
  const told = () => [`${at}: ${JSON.stringify(value)} is no ${type.getText(source)}`];
  switch (type.kind) {
    case K.UnknownKeyword:
      return [];
    case K.StringKeyword:
      return typeof value === "string" ? [] : told();
    case K.NumberKeyword:
      return typeof value === "number" ? [] : told();
    case K.BooleanKeyword:
      return typeof value === "boolean" ? [] : told();
    case K.LiteralType:
      return value === literal(type.literal) ? [] : told();
    case K.TypeLiteral:
      return ofMembers(value, type.members, at);
    case K.ArrayType:
      return Array.isArray(value) ? value.flatMap((item, index) => ofType(item, type.elementType, `${at}[${index}]`)) : told();
    case K.TupleType:
      if (!Array.isArray(value) || value.length !== type.elements.length) return told();
      return type.elements.flatMap((element, index) => ofType(value[index], element, `${at}[${index}]`));
    case K.UnionType: {
      const each = type.types.map((one) => ofType(value, one, at));
      if (each.some((wrong) => wrong.length === 0)) return [];
      const maps = type.types.findIndex((one) => [K.TypeLiteral, K.TypeReference].includes(one.kind));
      return isMap(value) && maps >= 0 ? each[maps] : told();
    }
    case K.TypeReference:
      return ofName(value, type.typeName.text, type.typeArguments ?? [], at);
    default:
      throw new Error(`${at}: no rule for ${type.getText(source)}`);
  }
}

function literal(node) {
  if (node.kind === K.NullKeyword) return null;
  if (node.kind === K.TrueKeyword) return true;
  return node.kind === K.FalseKeyword ? false : node.text;
}

function isMap(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
}
