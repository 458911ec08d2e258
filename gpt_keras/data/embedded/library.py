"""Which functions of Python's standard library are small exercises, and what they take.

Each was read before it got on the list: it computes a value from its arguments, and touches no file, no network, no
clock and no setting of the process. A Python that lacks one of them, or has it in another form, does without it.
"""

from __future__ import annotations

import re

_FUNCTIONS = {  # module: function(kind of argument, ...), as in `gpt_keras.data.embedded.arguments`
    "_pydatetime": "_is_leap(year) _days_before_year(year) _days_in_month(year, month) _days_before_month(year, month) "
    "_ymd2ord(year, month, day) _divide_and_round(int, positive)",
    "_pydecimal": "_decimal_lshift_exact(int, count) _sqrt_nearest(positive, positive) _rshift_nearest(int, count) "
    "_div_nearest(int, positive) _ilog(positive, positive) _log10_lb(positive)",
    "_strptime": "_calc_julian_from_U_or_W(year, month, count, bool)",
    "ast": "_splitlines_no_ff(lines) _pad_whitespace(indented)",
    "base64": "b64encode(bytes) b64decode(base64) standard_b64encode(bytes) urlsafe_b64encode(bytes) b16encode(bytes) "
    "b16decode(hexadecimal) encodebytes(bytes) decodebytes(base64_bytes)",
    "bisect": "bisect_left(ordered, wanted) bisect_right(ordered, wanted)",
    "calendar": "isleap(year) leapdays(year, year) weekday(year, month, day) monthrange(year, month)",
    "datetime": "_is_leap(year) _days_before_year(year) _divide_and_round(int, positive)",
    "difflib": "get_close_matches(word, list[str]) IS_LINE_JUNK(line) IS_CHARACTER_JUNK(letters) "
    "_format_range_unified(count, count) _format_range_context(count, count) _keep_original_ws(sentence, letters)",
    "email._encoded_words": "encode(sentence)",
    "email._parseaddr": "parsedate(date)",
    "email.base64mime": "header_length(bytes) header_encode(sentence) body_encode(bytes) decode(base64)",
    "email.message": "_formatparam(word, sentence)",
    "email.quoprimime": "header_check(byte) body_check(byte) body_length(bytes) unquote(quoted) "
    "header_decode(quoted_text)",
    "email.utils": "formataddr(pair) getaddresses(mails) parseaddr(mail) decode_rfc2231(extended) "
    "encode_rfc2231(sentence)",
    "encodings": "normalize_encoding(encoding)",
    "encodings.punycode": "selective_len(str, byte)",
    "enum": "_is_dunder(identifier) _is_sunder(identifier) _is_single_bit(positive) _high_bit(int) bin(int) "
    "_dedent(indented)",
    "fnmatch": "fnmatchcase(path, pattern) filter(paths, pattern)",
    "functools": "_gt_from_lt(int, int) _le_from_lt(int, int) _ge_from_le(int, int) _lt_from_ge(int, int)",
    "genericpath": "commonprefix(paths)",
    "heapq": "heappop(ordered) heapreplace(ordered, wanted) heappushpop(ordered, wanted)",
    "html": "escape(markup)",
    "http.cookiejar": "is_HDN(host) domain_match(host, host) liberal_is_HDN(host) reach(host)",
    "http.cookies": "_quote(str)",
    "http.server": "_url_collapse_path(path)",
    "imaplib": "Int2AP(positive)",
    "importlib._bootstrap_external": "_pack_uint32(positive)",
    "inspect": "cleandoc(indented) indentsize(indented) getmodulename(path)",
    "ipaddress": "v4_int_to_packed(positive) v6_int_to_packed(positive) _count_righthand_zero_bits(positive, count)",
    "json.encoder": "py_encode_basestring(str) py_encode_basestring_ascii(accented)",
    "operator": "lt(int, int) le(int, int) eq(size, size) ne(size, size) ge(int, int) gt(int, int) not_(count) "
    "truth(count) add(int, int) and_(positive, positive) floordiv(int, size) inv(int) lshift(int, count) "
    "mod(int, size) mul(int, int) neg(int) or_(positive, positive) pow(int, size) rshift(positive, count) "
    "sub(int, int) truediv(int, size) xor(positive, positive) concat(word, word) contains(sentence, letters) "
    "countOf(list[int], wanted) indexOf(ordered, wanted) length_hint(list[str]) iadd(int, int) isub(int, int) "
    "imul(int, int) iconcat(list[int], list[int]) getitem(list[int], count)",
    "pickle": "encode_long(int) decode_long(bytes)",
    "platform": "_norm_version(version)",
    "posixpath": "normcase(path) isabs(path) join(path, path) split(path) basename(path) dirname(path) "
    "splitdrive(path)",
    "pydoc": "replace(sentence, letters, word) cram(sentence, width) splitdoc(indented)",
    "quopri": "needsquoting(octet, bool, bool) ishex(octet) unhex(hexadecimal)",
    "shlex": "quote(path)",
    "shutil": "_basename(path)",
    "stat": "S_IMODE(mode) S_IFMT(mode) S_ISDIR(mode) S_ISREG(mode) S_ISLNK(mode) S_ISFIFO(mode) S_ISCHR(mode) "
    "filemode(mode)",
    "statistics": "mean(list[float]) median(list[float]) median_low(list[float]) median_high(list[float]) "
    "mode(list[float]) multimode(list[float]) variance(list[float]) pvariance(list[float]) stdev(list[float]) "
    "pstdev(list[float]) geometric_mean(list[float]) _integer_sqrt_of_frac_rto(positive, positive)",
    "textwrap": "wrap(sentence, width) fill(sentence, width) shorten(sentence, width) dedent(indented) "
    "indent(lines, letters)",
    "tokenize": "_get_normal_name(encoding)",
    "trace": "_modname(path)",
    "unittest.util": "three_way_cmp(size, size) unorderable_list_difference(list[int], list[int])",
    "urllib.parse": "unquote_to_bytes(encoded) unquote_plus(encoded) "
    "parse_qs(query) quote_plus(sentence) quote_from_bytes(bytes) unwrap(address) "
    "_splituser(login) _splitpasswd(login) _splitnport(host) _splitquery(address) "
    "_splittag(address) _splitattr(address) _splitvalue(query)",
    "urllib.request": "parse_keqv_list(assignments)",
    "wsgiref.util": "is_hop_by_hop(header)",
    "xml.sax.saxutils": "unescape(markup) quoteattr(str)",
    "zoneinfo._zoneinfo": "_post_epoch_days_before_year(year)",
}


def library_functions() -> dict[str, dict[str, tuple[str, ...]]]:
    """For each module its functions, and for each of those the kinds of its arguments."""
    return {
        module: {name: tuple(kinds.split(", ")) for name, kinds in re.findall(r"(\w+)\(([^)]*)\)", functions)}
        for module, functions in _FUNCTIONS.items()
    }
