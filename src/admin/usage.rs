//! What was used, by way of the admin API: sums, the rows themselves, and the loads of models.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

use super::query::Query;
use super::{Content, Desk, Flow, json_answer};
use crate::reject::Reject;
use crate::report::{self, Format, Page, Period, Question, Sheet, csv_line};
use crate::store::{RowsQuery, UsageFilter};

type Answer = Result<Response<Content>, Reject>;
/// Rows of one piece of a large answer.
const PIECE: usize = report::MOST_ROWS;

/// Behind the `?` of each of them.
pub(super) const SUMS: [&str; 9] =
    ["by", "since", "until", "name", "key", "model", "backend", "operation", "format"];
pub(super) const ROWS: [&str; 10] =
    ["since", "until", "name", "key", "model", "backend", "operation", "format", "limit", "after"];

/// Sums by columns.
pub(super) async fn sums(desk: Desk<'_>, query: &Query) -> Answer {
    let by = report::columns(query.text("by").unwrap_or("user")).map_err(|it| wrong("by", &it))?;
    let format = format(query)?;
    let zone = desk.config.time_zone.clone();
    let asked = Question { by, period: period(desk, query)?, zone, only: only(query) };
    let prices = desk.config.prices.clone();
    let sums = desk.with_store(move |store| report::sums(store, &asked, &prices)).await?;
    let mut pieces = sums.sheet.pieces(format, PIECE);
    let first = Bytes::from(pieces().unwrap_or_default());
    Ok(answer(
        format,
        Content::Flowing(Box::new(Flow::new(first, move || Ok(pieces().map(Bytes::from))))),
    ))
}

/// The rows, a page of them; as CSV without a `limit` all of them.
pub(super) async fn rows(desk: Desk<'_>, query: &Query) -> Answer {
    let (format, asked) = (format(query)?, asked(desk, query)?);
    let is_whole = format == Format::Csv && query.text("limit").is_none();
    let asked = if is_whole { RowsQuery { limit: PIECE, ..asked } } else { asked };
    let (prices, first) = (desk.config.prices.clone(), asked.clone());
    let page = desk.with_store(move |store| report::rows(store, &first, &prices)).await?;
    if !is_whole || page.next.is_none() {
        return Ok(page_answer("rows", &page, format).map(Content::Whole));
    }
    let (store, prices, mut next) = (desk.store()?, desk.config.prices.clone(), page.next);
    let rest = move || {
        let Some(before) = next else { return Ok(None) };
        let asked = RowsQuery { before: Some(before), ..asked.clone() };
        let page = report::rows(&store, &asked, &prices)?;
        next = page.next;
        let lines: String = page.sheet.rows.iter().map(|row| csv_line(row)).collect();
        // Nothing at all would be the end.
        Ok((!lines.is_empty()).then(|| Bytes::from(lines)))
    };
    let flow = Flow::new(Bytes::from(page.sheet.to_csv()), rest);
    Ok(answer(format, Content::Flowing(Box::new(flow))))
}

/// Which models had to be loaded, a page of them.
pub(super) async fn reloads(desk: Desk<'_>, query: &Query) -> Result<Response<Bytes>, Reject> {
    let (format, asked) = (format(query)?, asked(desk, query)?);
    let (page, _) = desk.with_store(move |store| report::reloads(store, &asked)).await?;
    Ok(page_answer("reloads", &page, format))
}

fn period(desk: Desk<'_>, query: &Query) -> Result<Period, Reject> {
    let (since, until) = (query.text("since"), query.text("until"));
    let period = Period::read(since, until, Timestamp::now(), &desk.config.time_zone);
    period.map_err(|says| Reject::Invalid(says.into()))
}

fn only(query: &Query) -> UsageFilter {
    let text = |name| query.text(name).map(str::to_owned);
    UsageFilter {
        name: text("name"),
        key: text("key"),
        model: query.text("model").map(report::model_as_stored),
        backend: text("backend"),
        operation: text("operation"),
    }
}

fn asked(desk: Desk<'_>, query: &Query) -> Result<RowsQuery, Reject> {
    let mut asked = report::rows_query(period(desk, query)?, only(query));
    asked.limit = query.limit()?;
    asked.before = query.number("after")?;
    Ok(asked)
}

/// A table is for a terminal.
fn format(query: &Query) -> Result<Format, Reject> {
    match query.text("format") {
        None | Some("json") => Ok(Format::Json),
        Some("csv") => Ok(Format::Csv),
        Some(_) => Err(wrong("format", "expected json or csv")),
    }
}

fn wrong(parameter: &str, says: &str) -> Reject {
    Reject::Invalid(format!("{parameter}: {says}").into())
}

fn page_answer(name: &str, page: &Page, format: Format) -> Response<Bytes> {
    match format {
        Format::Csv => csv_answer(&page.sheet),
        Format::Json | Format::Table => {
            json_answer(StatusCode::OK, &json!({name: page.sheet.to_json(), "next": page.next}))
        }
    }
}

fn csv_answer(sheet: &Sheet) -> Response<Bytes> {
    answer(Format::Csv, Bytes::from(sheet.to_csv()))
}

fn answer<T>(format: Format, content: T) -> Response<T> {
    let mut response = Response::new(content);
    let kind = HeaderValue::from_static(match format {
        Format::Csv => "text/csv; charset=utf-8",
        Format::Json | Format::Table => "application/json",
    });
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
