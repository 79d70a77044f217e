//! Rules of the section `tests`.

use super::Judge;
use crate::{Config, ConfigPath};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let at = ConfigPath::from("tests");
    let named = config.tests.iter().enumerate().map(|(i, test)| (at.index(i).key("name"), test.name.clone()));
    judge.unique("test name", "give each a name of its own", named);
    for (index, test) in config.tests.iter().enumerate() {
        let (at, expect) = (at.index(index).key("expect"), &test.expect);
        let nothing = expect.route.is_none()
            && expect.backend.is_none()
            && expect.session_name.is_none()
            && expect.request.is_none()
            && expect.response.is_none();
        if nothing && !judge.checked.is_blurred_within(&at) {
            let help = "give it a `route`, a `backend`, a `sessionName`, a `request` or a `response`";
            judge.error("missing", &at, "the test expects nothing", help);
        }
    }
}
