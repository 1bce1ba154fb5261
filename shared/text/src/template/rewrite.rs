//! Puts Python's rules where minijinja has its own: a parsed template is copied, and on the way operators, slices,
//! method calls and raw text become filters of `ops` and `methods`.
//!
//! This is also what makes the limits hold: every step that can make a text longer passes through our own code.
//! The syntax tree is minijinja's unstable interface; its exact version is pinned, and only this file and
//! `engine.rs` know of it.

use minijinja::Value;
use minijinja::machinery::{Span, ast};

use super::methods::METHODS;

/// Names of the filters that replace syntax. None can be written in a template.
pub(super) mod names {
    pub(crate) const ADD: &str = "+";
    pub(crate) const SUB: &str = "-";
    pub(crate) const MUL: &str = "*";
    pub(crate) const DIV: &str = "/";
    pub(crate) const FLOOR_DIV: &str = "//";
    pub(crate) const REM: &str = "%";
    pub(crate) const POW: &str = "**";
    pub(crate) const CONCAT: &str = "~";
    pub(crate) const IN: &str = ">in";
    pub(crate) const SLICE: &str = "[:]";
    pub(crate) const METHOD: &str = ".()";
    pub(crate) const ATTRIBUTE: &str = ".";
    pub(crate) const MADE: &str = "=";
    pub(crate) const COMPARED: &str = "==";
    pub(crate) const READ: &str = "[]";
    pub(crate) const ITERATED: &str = "for";
}

/// What HF's renderer has no means for.
#[derive(Debug)]
pub(super) struct Unsupported(pub(super) &'static str);

type Result<T> = std::result::Result<T, Unsupported>;

/// Copies a template.
pub(super) fn template<'a>(stmt: &ast::Stmt<'a>) -> Result<ast::Stmt<'a>> {
    use ast::Stmt;
    Ok(match stmt {
        Stmt::Template(s) => {
            Stmt::Template(spanned(ast::Template { children: body(&s.children)? }, s.span()))
        }
        Stmt::EmitExpr(s) => Stmt::EmitExpr(spanned(ast::EmitExpr { expr: expr(&s.expr) }, s.span())),
        Stmt::EmitRaw(s) => {
            Stmt::EmitExpr(spanned(ast::EmitExpr { expr: constant(Value::from(s.raw), s.span()) }, s.span()))
        }
        Stmt::ForLoop(s) => {
            let copy = ast::ForLoop {
                target: target(&s.target),
                iter: filter(names::ITERATED, expr(&s.iter), Vec::new(), s.iter.span()),
                filter_expr: s.filter_expr.as_ref().map(expr),
                recursive: s.recursive,
                body: body(&s.body)?,
                else_body: body(&s.else_body)?,
            };
            Stmt::ForLoop(spanned(copy, s.span()))
        }
        Stmt::IfCond(s) => {
            let copy = ast::IfCond {
                expr: expr(&s.expr),
                true_body: body(&s.true_body)?,
                false_body: body(&s.false_body)?,
            };
            Stmt::IfCond(spanned(copy, s.span()))
        }
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(name, value)| (target(name), expr(value))).collect();
            Stmt::WithBlock(spanned(ast::WithBlock { assignments, body: body(&s.body)? }, s.span()))
        }
        Stmt::Set(s) => {
            Stmt::Set(spanned(ast::Set { target: target(&s.target), expr: expr(&s.expr) }, s.span()))
        }
        Stmt::SetBlock(s) => {
            let copy = ast::SetBlock {
                target: target(&s.target),
                filter: s.filter.as_ref().map(expr),
                body: body(&s.body)?,
            };
            Stmt::SetBlock(spanned(copy, s.span()))
        }
        Stmt::AutoEscape(s) => {
            let copy = ast::AutoEscape { enabled: expr(&s.enabled), body: body(&s.body)? };
            Stmt::AutoEscape(spanned(copy, s.span()))
        }
        Stmt::FilterBlock(s) => {
            let copy = ast::FilterBlock { filter: expr(&s.filter), body: body(&s.body)? };
            Stmt::FilterBlock(spanned(copy, s.span()))
        }
        Stmt::Block(s) => {
            let copy = ast::Block { name: s.name, required: s.required, body: body(&s.body)? };
            Stmt::Block(spanned(copy, s.span()))
        }
        Stmt::Macro(s) => Stmt::Macro(spanned(macro_decl(s)?, s.span())),
        Stmt::CallBlock(s) => {
            let copy = ast::CallBlock {
                call: spanned(plain_call(&s.call), s.call.span()),
                macro_decl: spanned(macro_decl(&s.macro_decl)?, s.macro_decl.span()),
            };
            Stmt::CallBlock(spanned(copy, s.span()))
        }
        Stmt::Continue(s) => Stmt::Continue(spanned(ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(spanned(ast::Break, s.span())),
        Stmt::Do(_) => return Err(Unsupported("the tag 'do'")),
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
            return Err(Unsupported("another template (import, extends, include)"));
        }
    })
}

fn body<'a>(stmts: &[ast::Stmt<'a>]) -> Result<Vec<ast::Stmt<'a>>> {
    stmts.iter().map(template).collect()
}

fn macro_decl<'a>(s: &ast::Macro<'a>) -> Result<ast::Macro<'a>> {
    Ok(ast::Macro {
        name: s.name,
        args: s.args.iter().map(target).collect(),
        defaults: s.defaults.iter().map(expr).collect(),
        body: body(&s.body)?,
    })
}

/// What is assigned to: nothing in it is replaced.
fn target<'a>(e: &ast::Expr<'a>) -> ast::Expr<'a> {
    use ast::Expr;
    match e {
        Expr::List(e) => {
            Expr::List(spanned(ast::List { items: e.items.iter().map(target).collect() }, e.span()))
        }
        Expr::Tuple(e) => {
            Expr::Tuple(spanned(ast::Tuple { items: e.items.iter().map(target).collect() }, e.span()))
        }
        Expr::GetAttr(e) => {
            Expr::GetAttr(spanned(ast::GetAttr { expr: target(&e.expr), name: e.name }, e.span()))
        }
        _ => expr(e),
    }
}

fn expr<'a>(e: &ast::Expr<'a>) -> ast::Expr<'a> {
    use ast::Expr;
    match e {
        Expr::Var(e) => Expr::Var(spanned(ast::Var { id: e.id }, e.span())),
        Expr::Const(e) => constant(e.value.clone(), e.span()),
        Expr::Slice(e) => {
            let part = |part: &Option<Expr<'a>>| match part {
                Some(part) => expr(part),
                None => constant(Value::from(()), e.span()),
            };
            filter(names::SLICE, expr(&e.expr), vec![part(&e.start), part(&e.stop), part(&e.step)], e.span())
        }
        Expr::UnaryOp(e) => {
            let not = matches!(e.op, ast::UnaryOpKind::Not);
            let op = if not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(spanned(ast::UnaryOp { op, expr: expr(&e.expr) }, e.span()))
        }
        Expr::BinOp(e) => {
            let (left, right) = (expr(&e.left), expr(&e.right));
            match operator(e.op) {
                Some(name) => filter(name, left, vec![right], e.span()),
                None if !matches!(e.op, ast::BinOpKind::ScAnd | ast::BinOpKind::ScOr) => {
                    let left = filter(names::COMPARED, left, Vec::new(), e.span());
                    Expr::BinOp(spanned(ast::BinOp { op: e.op, left, right }, e.span()))
                }
                None => Expr::BinOp(spanned(ast::BinOp { op: e.op, left, right }, e.span())),
            }
        }
        Expr::Compare(e) => compare(e, e.span()),
        Expr::IfExpr(e) => {
            let copy = ast::IfExpr {
                test_expr: expr(&e.test_expr),
                true_expr: expr(&e.true_expr),
                false_expr: e.false_expr.as_ref().map(expr),
            };
            Expr::IfExpr(spanned(copy, e.span()))
        }
        Expr::Filter(e) => {
            let inner = e.expr.as_ref().map(expr);
            // Without a value it is the filter of a block, whose result is counted when it is printed.
            let of_block = base_is_missing(e);
            let copy = ast::Filter { name: e.name, expr: inner, args: arguments(&e.args) };
            let copy = Expr::Filter(spanned(copy, e.span()));
            if of_block { copy } else { filter(names::MADE, copy, Vec::new(), e.span()) }
        }
        Expr::Test(e) => {
            let copy = ast::Test { name: e.name, expr: read(&e.expr, e.span()), args: arguments(&e.args) };
            Expr::Test(spanned(copy, e.span()))
        }
        Expr::GetAttr(e) if METHODS.contains(&e.name) => {
            filter(names::ATTRIBUTE, expr(&e.expr), vec![constant(Value::from(e.name), e.span())], e.span())
        }
        Expr::GetAttr(e) => {
            Expr::GetAttr(spanned(ast::GetAttr { expr: expr(&e.expr), name: e.name }, e.span()))
        }
        Expr::GetItem(e) => {
            let subscript_expr = expr(&e.subscript_expr);
            let copy = ast::GetItem { expr: read(&e.expr, e.span()), subscript_expr };
            Expr::GetItem(spanned(copy, e.span()))
        }
        Expr::Call(e) => call(e, e.span()),
        Expr::List(e) => {
            Expr::List(spanned(ast::List { items: e.items.iter().map(expr).collect() }, e.span()))
        }
        Expr::Tuple(e) => {
            Expr::Tuple(spanned(ast::Tuple { items: e.items.iter().map(expr).collect() }, e.span()))
        }
        Expr::Map(e) => {
            let copy = ast::Map {
                keys: e.keys.iter().map(expr).collect(),
                values: e.values.iter().map(expr).collect(),
            };
            Expr::Map(spanned(copy, e.span()))
        }
    }
}

/// What is looked into: counted, since finding a place in a text reads all before it.
fn read<'a>(e: &ast::Expr<'a>, span: Span) -> ast::Expr<'a> {
    filter(names::READ, expr(e), Vec::new(), span)
}

/// A comparison; one of `in` and `not in` alone is replaced.
fn compare<'a>(e: &ast::Compare<'a>, span: Span) -> ast::Expr<'a> {
    use ast::CompareOpKind::{In, NotIn};
    if let [ast::CompareOp { op: op @ (In | NotIn), expr: right }] = &e.ops[..] {
        let found = filter(names::IN, expr(&e.expr), vec![expr(right)], span);
        return match op {
            NotIn => {
                ast::Expr::UnaryOp(spanned(ast::UnaryOp { op: ast::UnaryOpKind::Not, expr: found }, span))
            }
            _ => found,
        };
    }
    let ops = e.ops.iter().map(|op| ast::CompareOp { op: op.op, expr: expr(&op.expr) }).collect();
    let left = filter(names::COMPARED, expr(&e.expr), Vec::new(), span);
    ast::Expr::Compare(spanned(ast::Compare { expr: left, ops }, span))
}

/// A call; of a method that a Python value has, it is replaced.
fn call<'a>(e: &ast::Call<'a>, span: Span) -> ast::Expr<'a> {
    if let ast::Expr::GetAttr(method) = &e.expr
        && METHODS.contains(&method.name)
    {
        let mut args = vec![ast::CallArg::Pos(constant(Value::from(method.name), span))];
        args.extend(arguments(&e.args));
        let copy = ast::Filter { name: names::METHOD, expr: Some(expr(&method.expr)), args };
        return ast::Expr::Filter(spanned(copy, span));
    }
    ast::Expr::Call(spanned(plain_call(e), span))
}

fn plain_call<'a>(e: &ast::Call<'a>) -> ast::Call<'a> {
    ast::Call { expr: target(&e.expr), args: arguments(&e.args) }
}

fn arguments<'a>(args: &[ast::CallArg<'a>]) -> Vec<ast::CallArg<'a>> {
    use ast::CallArg;
    let copy = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(value) => CallArg::Pos(expr(value)),
        CallArg::Kwarg(name, value) => CallArg::Kwarg(name, expr(value)),
        CallArg::PosSplat(value) => CallArg::PosSplat(expr(value)),
        CallArg::KwargSplat(value) => CallArg::KwargSplat(expr(value)),
    };
    args.iter().map(copy).collect()
}

/// Whether a chain of filters has nothing at its start.
fn base_is_missing(mut e: &ast::Filter<'_>) -> bool {
    loop {
        match &e.expr {
            None => return true,
            Some(ast::Expr::Filter(inner)) => e = inner,
            Some(_) => return false,
        }
    }
}

/// The filter for an operator, where Python's rules differ or the result may be long.
fn operator(op: ast::BinOpKind) -> Option<&'static str> {
    use ast::BinOpKind as Op;
    Some(match op {
        Op::Add => names::ADD,
        Op::Sub => names::SUB,
        Op::Mul => names::MUL,
        Op::Div => names::DIV,
        Op::FloorDiv => names::FLOOR_DIV,
        Op::Rem => names::REM,
        Op::Pow => names::POW,
        Op::Concat => names::CONCAT,
        Op::In => names::IN,
        Op::Eq | Op::Ne | Op::Lt | Op::Lte | Op::Gt | Op::Gte | Op::ScAnd | Op::ScOr => return None,
    })
}

fn filter<'a>(
    name: &'static str,
    value: ast::Expr<'a>,
    args: Vec<ast::Expr<'a>>,
    span: Span,
) -> ast::Expr<'a> {
    let args = args.into_iter().map(ast::CallArg::Pos).collect();
    ast::Expr::Filter(spanned(ast::Filter { name, expr: Some(value), args }, span))
}

fn constant<'a>(value: Value, span: Span) -> ast::Expr<'a> {
    ast::Expr::Const(spanned(ast::Const { value }, span))
}

fn spanned<T>(node: T, span: Span) -> ast::Spanned<T> {
    ast::Spanned::new(node, span)
}
