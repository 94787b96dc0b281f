//! Lists of indexes, `1,3-5,7`, as Indexed Jobs report them.
//!
//! Behaves as validateIndexesFormat of pkg/apis/batch/validation/validation.go, v1.36.

/// How many indexes the list names, or why it is none.
pub(crate) fn total(list: &str, completions: i32) -> Result<i64, String> {
    let mut last: Option<i64> = None;
    let mut total = 0;
    for text in list.split(',').filter(|_| !list.is_empty()) {
        let (first, end) = interval(text, completions)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn interval(text: &str, completions: i32) -> Result<(i64, i64), String> {
    let number = |text: &str| {
        let number: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number >= i64::from(completions) {
            return Err(format!("too large index: {text:?}"));
        }
        Ok(number)
    };
    let mut parts = text.split('-');
    let first = parts.next().unwrap_or_default();
    let (second, third) = (parts.next(), parts.next());
    if third.is_some() {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let first = number(first)?;
    let Some(second) = second else { return Ok((first, first)) };
    let second = number(second)?;
    if first >= second {
        return Err(format!("non-increasing order, previous: {first}, current: {second}"));
    }
    Ok((first, second))
}

/// The first index that is in both lists. Unreadable parts are in neither.
pub(crate) fn overlap(left: &str, right: &str, completions: i32) -> Option<i64> {
    let intervals = |list: &str| -> Vec<(i64, i64)> {
        list.split(',').filter_map(|text| interval(text, completions).ok()).collect()
    };
    let right = intervals(right);
    let overlaps = intervals(left).into_iter().flat_map(|(start, end)| {
        let overlapping = right.iter().filter(move |(first, last)| start <= *last && *first <= end);
        overlapping.map(move |(first, _)| start.max(*first)).collect::<Vec<_>>()
    });
    overlaps.min()
}
