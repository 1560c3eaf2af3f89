package httpapi

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/settkv/sett/kv"
)

func etag(r kv.Revision) string { return `"` + strconv.FormatUint(uint64(r), 10) + `"` }

// match is a parsed If-Match: any key that exists, or one revision.
type match struct {
	present  bool
	any      bool
	revision kv.Revision
}

// holds reports whether the key, at mod revision r (0: absent), meets m.
func (m match) holds(r kv.Revision) bool {
	return !m.present || r != 0 && (m.any || m.revision == r)
}

// conds is m as conditions of a transaction.
func (m match) conds(key string) []kv.Cond {
	exists := kv.Cond{Key: key, Target: kv.CondExists, Op: kv.CmpEqual, Number: 1}
	at := kv.Cond{Key: key, Target: kv.CondModRevision, Op: kv.CmpEqual, Number: uint64(m.revision)}
	switch {
	case !m.present:
		return nil
	case m.any:
		return []kv.Cond{exists}
	case m.revision == 0:
		// No key has mod revision 0, yet an absent one compares as 0: without the first
		// condition If-Match: "0" would create a key.
		return []kv.Cond{exists, at}
	}
	return []kv.Cond{at}
}

// parseIfMatch reads If-Match. A list is refused: a conditional write that names
// several revisions does not know what it replaces. A weak tag is refused too, since
// by RFC 9110 it could never match.
func parseIfMatch(h http.Header) (match, error) {
	v, ok, err := singleHeader(h, "If-Match")
	if err != nil || !ok {
		return match{}, err
	}
	if v == "*" {
		return match{present: true, any: true}, nil
	}
	r, ok := parseETag(v)
	if !ok {
		return match{}, kv.Errorf(kv.CodeInvalidArgument, `If-Match takes * or one revision in quotes, as ETag shows it, for example If-Match: "42"; lists and weak tags are not taken`)
	}
	return match{present: true, revision: r}, nil
}

// parseIfAbsent reads If-None-Match of a write, of which only * has a meaning.
func parseIfAbsent(h http.Header) (bool, error) {
	v, ok, err := singleHeader(h, "If-None-Match")
	if err != nil || !ok {
		return false, err
	}
	if v != "*" {
		return false, kv.Errorf(kv.CodeInvalidArgument, "If-None-Match of a PUT takes * only (create, never replace); to replace a known revision use If-Match")
	}
	return true, nil
}

func singleHeader(h http.Header, name string) (string, bool, error) {
	v := h.Values(name)
	switch len(v) {
	case 0:
		return "", false, nil
	case 1:
		return strings.Trim(v[0], " \t"), true, nil
	}
	return "", false, kv.Errorf(kv.CodeInvalidArgument, "header %s is given twice", name)
}

// parseETag reads a revision in quotes, written as the server writes it.
func parseETag(v string) (kv.Revision, bool) {
	digits, ok := strings.CutPrefix(v, `"`)
	if ok {
		digits, ok = strings.CutSuffix(digits, `"`)
	}
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, false
	}
	return kv.Revision(n), true
}

// noneMatch evaluates If-None-Match of a read: a list of tags, compared weakly, or *.
// It reports whether the answer is 304. A tag that is no revision matches nothing.
func noneMatch(h http.Header, r kv.Revision) (notModified bool, err error) {
	bad := kv.Errorf(kv.CodeInvalidArgument, `If-None-Match takes * or a list of tags in quotes, as ETag shows them, for example If-None-Match: "42"`)
	for _, line := range h.Values("If-None-Match") {
		rest := strings.Trim(line, " \t")
		if rest == "*" {
			return true, nil
		}
		for rest != "" {
			rest = strings.TrimPrefix(rest, "W/")
			if !strings.HasPrefix(rest, `"`) {
				return false, bad
			}
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return false, bad
			}
			tag := rest[:end+2]
			if rev, ok := parseETag(tag); ok && rev == r {
				notModified = true
			}
			rest = strings.TrimLeft(rest[end+2:], " \t")
			if rest == "" {
				break
			}
			if !strings.HasPrefix(rest, ",") {
				return false, bad
			}
			rest = strings.TrimLeft(rest, ", \t")
		}
	}
	return notModified, nil
}

// byteRange is the part of a value that a Range header asks for.
type byteRange struct{ from, to int } // to is exclusive

// parseRange reads Range for a value of size bytes. ok is false if the whole value
// is the answer: there is no header, it isn't a byte range, it is badly formed, or it
// names several ranges (RFC 9110 lets a server ignore it then).
func parseRange(h http.Header, size int) (r byteRange, ok bool, err error) {
	v := h.Values("Range")
	if len(v) != 1 {
		return r, false, nil
	}
	unit, spec, found := strings.Cut(v[0], "=")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || strings.Contains(spec, ",") {
		return r, false, nil
	}
	first, last, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found {
		return r, false, nil
	}
	if first == "" { // the last N bytes
		n, good := rangeNumber(last)
		if !good {
			return r, false, nil
		}
		if n == 0 || size == 0 {
			return r, false, &rangeError{size}
		}
		return byteRange{max(0, size-n), size}, true, nil
	}
	from, good := rangeNumber(first)
	if !good {
		return r, false, nil
	}
	to := size
	if last != "" {
		n, good := rangeNumber(last)
		if !good || n < from {
			return r, false, nil
		}
		if n < size {
			to = n + 1
		}
	}
	if from >= size {
		return r, false, &rangeError{size}
	}
	return byteRange{from, to}, true, nil
}

// rangeNumber reads digits; a number beyond any value's size is as good as the
// biggest.
func rangeNumber(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return int(^uint(0)>>1) - 1, true
	}
	return n, true
}

// wantsRange reports whether If-Range, if there is one, lets Range count.
func wantsRange(h http.Header, r kv.Revision) bool {
	v := h.Get("If-Range")
	if v == "" {
		return true
	}
	rev, ok := parseETag(v)
	return ok && rev == r
}
