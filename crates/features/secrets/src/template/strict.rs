//! Makes a parsed template strict: it can neither print what is not there nor call what nobody wrote.
//!
//! In: the syntax tree of Go's language, where a missing field is nil and prints as
//! `<no value>`. Out: the same tree in which fields are looked up by `outrigger_field`, what is
//! printed or passed to a function goes through `outrigger_present` (or, a field by itself,
//! `outrigger_printed`), and each line is announced by `outrigger_line`. A variable that is used
//! must be declared. Conditions (`if`, `with`, `or`, `default`, …) may still meet a missing field.

use gotmpl::FuncMap;
use gotmpl::parse::{
    ActionNode, BranchNode, CommandNode, Expr, ListNode, Node, Number, Parser, PipeNode, Pos, SmolStr, TemplateNode,
};

use super::{Flaw, functions, syntax_flaw};

/// The whole template's name among those it defines.
pub(super) const MAIN: &str = "\u{1}main";
/// The name of the program around it, which has no text.
pub(super) const ROOT: &str = "\u{1}root";

pub(super) const FIELD: &str = "outrigger_field";
pub(super) const PRESENT: &str = "outrigger_present";
pub(super) const PRINTED: &str = "outrigger_printed";
pub(super) const FORMATTED: &str = "outrigger_formatted";
pub(super) const LINE: &str = "outrigger_line";

/// Functions that may be given what is not there.
pub(super) const LENIENT: [&str; 15] = [
    "and",
    "or",
    "not",
    "eq",
    "ne",
    "default",
    "sprig_default",
    "coalesce",
    "sprig_coalesce",
    "empty",
    "sprig_empty",
    FIELD,
    PRESENT,
    PRINTED,
    FORMATTED,
];
/// Functions of the engine itself.
const BUILT_IN: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "print", "println", "printf", "len", "slice", "call",
    "html", "js", "urlquery",
];

/// The strict trees of a template that has been parsed once already: its own and those it defines.
pub(super) fn trees(
    text: &str,
    parsed: &gotmpl::Template,
    functions: &FuncMap,
) -> Result<Vec<(String, ListNode)>, Flaw> {
    let (tree, defines) = Parser::new(text, "{{", "}}").and_then(Parser::parse).map_err(syntax_flaw)?;
    let mut trees = vec![(MAIN.to_owned(), tree)];
    for name in parsed.templates() {
        // The engine decides which definition of a name wins.
        if name != MAIN
            && let Some(tree) = parsed.lookup(name)
        {
            trees.push((name.to_owned(), tree.clone()));
        }
    }
    let defined: Vec<String> = defines.iter().map(|define| define.name.to_string()).collect();
    let rewritten = trees.into_iter().map(|(name, tree)| {
        // Each begins with nothing but `$`, the data it is given.
        let mut pass = Pass { functions, defined: &defined, variables: vec![SmolStr::new_static("$")] };
        Ok((name, pass.list(tree)?))
    });
    rewritten.collect()
}

struct Pass<'a> {
    functions: &'a FuncMap,
    defined: &'a [String],
    /// Those that are declared where the pass is.
    variables: Vec<SmolStr>,
}

impl Pass<'_> {
    fn list(&mut self, list: ListNode) -> Result<ListNode, Flaw> {
        let mut nodes = Vec::with_capacity(list.nodes.len() * 2);
        for node in list.nodes {
            if let Some(pos) = line_of(&node) {
                nodes.push(announce(pos));
            }
            nodes.push(self.node(node)?);
        }
        Ok(ListNode { pos: list.pos, nodes })
    }

    fn node(&mut self, node: Node) -> Result<Node, Flaw> {
        Ok(match node {
            Node::List(list) => Node::List(self.list(list)?),
            Node::Action(ActionNode { pos, pipe }) => {
                let as_it_is = is_field(&pipe);
                let mut pipe = self.pipe(pipe)?;
                if pipe.decl.is_empty() {
                    pipe.commands.push(command(pos, if as_it_is { PRINTED } else { PRESENT }, []));
                }
                Node::Action(ActionNode { pos, pipe })
            }
            Node::If(branch) => Node::If(self.branch(branch)?),
            Node::Range(branch) => Node::Range(self.branch(branch)?),
            Node::With(branch) => Node::With(self.branch(branch)?),
            Node::Template(TemplateNode { pos, name, pipe }) => {
                if !self.defined.iter().any(|known| *known == name) {
                    let message = format!("there is no template `{name}`; add `{{{{ define \"{name}\" }}}}`");
                    return Err(Flaw { line: pos.line, message });
                }
                Node::Template(TemplateNode { pos, name, pipe: pipe.map(|pipe| self.pipe(pipe)).transpose()? })
            }
            other @ (Node::Text(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_)) => other,
        })
    }

    fn branch(&mut self, branch: BranchNode) -> Result<BranchNode, Flaw> {
        let BranchNode { pos, pipe, body, else_body } = branch;
        let outside = self.variables.len();
        let pipe = self.pipe(pipe)?;
        let inside = self.variables.len();
        let body = self.list(body)?;
        self.variables.truncate(inside);
        let else_body = else_body.map(|body| self.list(body)).transpose()?;
        self.variables.truncate(outside);
        Ok(BranchNode { pos, pipe, body, else_body })
    }

    fn pipe(&mut self, pipe: PipeNode) -> Result<PipeNode, Flaw> {
        let mut commands = Vec::with_capacity(pipe.commands.len());
        for (index, node) in pipe.commands.into_iter().enumerate() {
            // What is piped into a function is its last argument.
            if index > 0 && callee(&node).is_some_and(|name| !LENIENT.contains(&name)) {
                commands.push(command(node.pos, PRESENT, []));
            }
            let (pos, formats) = (node.pos, callee(&node) == Some("printf"));
            commands.push(self.command(node, index > 0)?);
            if formats {
                commands.push(command(pos, FORMATTED, []));
            }
        }
        if pipe.is_assign {
            pipe.decl.iter().try_for_each(|name| self.declared(name, pipe.pos))?;
        } else {
            self.variables.extend(pipe.decl.iter().cloned());
        }
        Ok(PipeNode { commands, ..pipe })
    }

    fn command(&mut self, node: CommandNode, piped: bool) -> Result<CommandNode, Flaw> {
        let CommandNode { pos, args } = node;
        let name = args.first().and_then(identifier).map(str::to_owned);
        let Some(name) = name else {
            let args = args.into_iter().map(|arg| self.expression(arg)).collect::<Result<_, _>>()?;
            return Ok(CommandNode { pos, args });
        };
        self.known(&name, pos)?;
        self.accepts(&name, &args, piped, pos)?;
        let lenient = LENIENT.contains(&name.as_str());
        let mut rewritten = Vec::with_capacity(args.len());
        for (index, arg) in args.into_iter().enumerate() {
            rewritten.push(match arg {
                function if index == 0 => function,
                Expr::Nil(_) if lenient => arg,
                arg if lenient || is_literal(&arg) => self.expression(arg)?,
                arg => present(self.expression(arg)?),
            });
        }
        Ok(CommandNode { pos, args: rewritten })
    }

    fn expression(&mut self, expression: Expr) -> Result<Expr, Flaw> {
        Ok(match expression {
            Expr::Field(pos, fields) => field(pos, Expr::Dot(pos), &fields),
            Expr::Variable(pos, name, fields) => {
                self.declared(&name, pos)?;
                let variable = Expr::Variable(pos, name, Vec::new());
                if fields.is_empty() { variable } else { field(pos, variable, &fields) }
            }
            Expr::Chain(pos, inner, fields) => field(pos, self.expression(*inner)?, &fields),
            Expr::Pipe(pos, pipe) => Expr::Pipe(pos, self.pipe(pipe)?),
            Expr::Identifier(pos, name) => {
                self.known(&name, pos)?;
                self.accepts(&name, &[], false, pos)?;
                Expr::Identifier(pos, name)
            }
            other => other,
        })
    }

    fn declared(&self, name: &str, pos: Pos) -> Result<(), Flaw> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        let message = format!("undefined variable `{name}`; add `{{{{ {name} := … }}}}` before, within the same block");
        Err(Flaw { line: pos.line, message })
    }

    fn known(&self, name: &str, pos: Pos) -> Result<(), Flaw> {
        let hidden = [FIELD, PRESENT, PRINTED, FORMATTED, LINE].contains(&name);
        if !hidden && (BUILT_IN.contains(&name) || self.functions.contains_key(name)) {
            return Ok(());
        }
        let nearest = self
            .names()
            .map(|known| (strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase()), known))
            .min()
            .filter(|(distance, known)| *distance <= known.len().min(name.len()) / 3 + 1);
        let message = match nearest {
            _ if functions::ELSEWHERE.contains(&name) => {
                format!("the function `{name}` of consul-template is not offered here")
            }
            Some((_, known)) => format!("unknown function `{name}`; did you mean `{known}`?"),
            None => {
                let mut names: Vec<&str> = self.names().collect();
                names.sort_unstable();
                format!("unknown function `{name}`; there are {}", names.join(", "))
            }
        };
        Err(Flaw { line: pos.line, message })
    }

    /// The functions that may be called.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str).chain(BUILT_IN).filter(|known| !known.starts_with("outrigger_"))
    }

    fn accepts(&self, name: &str, args: &[Expr], piped: bool, pos: Pos) -> Result<(), Flaw> {
        let given = args.len().saturating_sub(1) + usize::from(piped);
        let flaw = |message: String| Err(Flaw { line: pos.line, message });
        if name == "secret" && given > 1 {
            return flaw("`secret` takes one path; writing with `key=value` arguments is not offered here".to_owned());
        }
        if let Some((least, most)) = functions::arity(name)
            && !(least..=most).contains(&given)
        {
            let range = match (least, most) {
                (least, usize::MAX) => format!("at least {least}"),
                (least, most) if least == most => least.to_string(),
                (least, most) => format!("{least} to {most}"),
            };
            return flaw(format!("`{name}` takes {range} arguments, not {given}"));
        }
        Ok(())
    }
}

fn line_of(node: &Node) -> Option<Pos> {
    match node {
        Node::Action(node) => Some(node.pos),
        Node::If(node) | Node::Range(node) | Node::With(node) => Some(node.pos),
        Node::Template(node) => Some(node.pos),
        _ => None,
    }
}

/// `{{ $… := outrigger_line N }}`, which prints nothing.
fn announce(pos: Pos) -> Node {
    let line = Expr::Number(pos, Number::Int(i64::try_from(pos.line).unwrap_or(i64::MAX)));
    let decl = vec![SmolStr::new_static("$\u{1}line")];
    let commands = vec![command(pos, LINE, [line])];
    Node::Action(ActionNode { pos, pipe: PipeNode { pos, decl, commands, is_assign: false } })
}

fn callee(command: &CommandNode) -> Option<&str> {
    command.args.first().and_then(identifier)
}

fn identifier(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Identifier(_, name) => Some(name),
        Expr::Chain(_, inner, _) => identifier(inner),
        _ => None,
    }
}

/// Whether it is nothing but a field, so that what is printed is what a secret holds.
fn is_field(pipe: &PipeNode) -> bool {
    let [CommandNode { args, .. }] = pipe.commands.as_slice() else { return false };
    match args.as_slice() {
        [Expr::Field(..) | Expr::Chain(..)] => true,
        [Expr::Variable(_, _, fields)] => !fields.is_empty(),
        _ => false,
    }
}

fn is_literal(expression: &Expr) -> bool {
    matches!(expression, Expr::String(..) | Expr::Number(..) | Expr::Bool(..))
}

fn field(pos: Pos, base: Expr, fields: &[SmolStr]) -> Expr {
    let names = fields.iter().map(|name| Expr::String(pos, name.as_str().into()));
    call(pos, FIELD, std::iter::once(base).chain(names))
}

fn present(expression: Expr) -> Expr {
    call(expression.pos(), PRESENT, [expression])
}

fn call(pos: Pos, name: &'static str, args: impl IntoIterator<Item = Expr>) -> Expr {
    let commands = vec![command(pos, name, args)];
    Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
}

fn command(pos: Pos, name: &'static str, args: impl IntoIterator<Item = Expr>) -> CommandNode {
    let function = Expr::Identifier(pos, SmolStr::new_static(name));
    CommandNode { pos, args: std::iter::once(function).chain(args).collect() }
}
