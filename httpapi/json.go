package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/settkv/sett/kv"
)

// writeJSON answers with v and a line feed.
func (x *exchange) writeJSON(status int, v any) error {
	b, err := encodeJSON(v)
	if err != nil {
		return err
	}
	return x.writeBytes(status, "application/json", b)
}

func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// jsonReader reads the JSON of a request, strictly: UTF-8, no name twice, names whose
// case counts, no null, nothing after the value. What it returns is a copy of the
// data's bytes. It can be reset and used again; it is for one goroutine.
type jsonReader struct {
	src bytes.Buffer
	dec *jsontext.Decoder
}

func newJSONReader(data []byte) *jsonReader {
	j := &jsonReader{src: *bytes.NewBuffer(data)}
	j.dec = jsontext.NewDecoder(&j.src)
	return j
}

// reset makes j read data.
func (j *jsonReader) reset(data []byte) {
	j.src = *bytes.NewBuffer(data)
	j.dec.Reset(&j.src)
}

func badJSON(format string, args ...any) *kv.Error {
	return kv.Errorf(kv.CodeInvalidArgument, "the JSON body "+format, args...)
}

// bad is the error of the value that comes next, or was read last.
func (j *jsonReader) bad(format string, args ...any) error {
	return badJSON("has a bad value"+j.where()+": "+format, args...)
}

// where names the place of what was read last.
func (j *jsonReader) where() string {
	p := string(j.dec.StackPointer())
	if p == "" {
		return ""
	}
	return " at " + strings.ReplaceAll(quote(p), "%", "%%")
}

// malformed is the error of what is no JSON.
func (j *jsonReader) malformed(err error) error {
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, io.EOF):
		return badJSON("is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return badJSON("is cut short")
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return badJSON("has a field twice: %s", quote(string(syntax.JSONPointer)))
	case errors.As(err, &syntax):
		return badJSON("is malformed at byte %d: %s", syntax.ByteOffset, syntax.Err)
	}
	return badJSON("is malformed")
}

// expect reads the beginning or the end of an object or array.
func (j *jsonReader) expect(kind jsontext.Kind, what string) error {
	switch got := j.dec.PeekKind(); got {
	case kind:
	case jsontext.KindInvalid:
	case 'n':
		return j.bad("it is null; leave the field out instead")
	default:
		return j.bad("it takes %s", what)
	}
	if _, err := j.dec.ReadToken(); err != nil {
		return j.malformed(err)
	}
	return nil
}

// object reads an object; field reads the value of the field of that name.
func (j *jsonReader) object(field func(name string) error) error {
	if err := j.expect('{', "an object"); err != nil {
		return err
	}
	for j.dec.PeekKind() != '}' {
		t, err := j.dec.ReadToken()
		if err != nil {
			return j.malformed(err)
		}
		if err := field(t.String()); err != nil {
			return err
		}
	}
	return j.expect('}', "an object")
}

// array reads an array; element reads the next element.
func (j *jsonReader) array(element func() error) error {
	if err := j.expect('[', "an array"); err != nil {
		return err
	}
	for {
		switch j.dec.PeekKind() {
		case ']', jsontext.KindInvalid:
			return j.expect(']', "an array")
		}
		if err := element(); err != nil {
			return err
		}
	}
}

// fields reads an object whose fields are those of set, each at most once.
func (j *jsonReader) fields(set map[string]func() error) error {
	return j.object(func(name string) error {
		read, ok := set[name]
		if !ok {
			return j.unknown(name, slices.Sorted(maps.Keys(set))...)
		}
		return read()
	})
}

// unknown is the error of a field that the object does not take.
func (j *jsonReader) unknown(name string, known ...string) error {
	return badJSON("has an unknown field %s; here it takes %s", quote(name), strings.Join(known, ", "))
}

// end verifies that nothing follows.
func (j *jsonReader) end() error {
	_, err := j.dec.ReadToken()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return badJSON("is followed by something")
	}
	return j.malformed(err)
}

// scalar returns the next value, raw and valid until the next is read.
func (j *jsonReader) scalar(kind jsontext.Kind, what string) ([]byte, error) {
	switch got := j.dec.PeekKind(); got {
	case kind, jsontext.KindInvalid:
	case 'n':
		return nil, j.bad("it is null; leave the field out instead")
	default:
		return nil, j.bad("it takes %s", what)
	}
	raw, err := j.dec.ReadValue()
	if err != nil {
		return nil, j.malformed(err)
	}
	return raw, nil
}

// bytes reads a text.
func (j *jsonReader) bytes() ([]byte, error) {
	raw, err := j.scalar('"', "text")
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return append(make([]byte, 0, len(raw)-2), raw[1:len(raw)-1]...), nil
	}
	b, err := jsontext.AppendUnquote(make([]byte, 0, len(raw)), raw)
	if err != nil {
		return nil, j.malformed(err)
	}
	return b, nil
}

func (j *jsonReader) text() (string, error) {
	raw, err := j.scalar('"', "text")
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	b, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return "", j.malformed(err)
	}
	return string(b), nil
}

// base64 reads bytes in the standard alphabet, padded.
func (j *jsonReader) base64() ([]byte, error) {
	text, err := j.bytes()
	if err != nil {
		return nil, err
	}
	// The decoder skips line ends, which are no part of the alphabet.
	if bytes.ContainsAny(text, "\r\n") {
		return nil, j.badBase64()
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(b, text)
	if err != nil {
		return nil, j.badBase64()
	}
	return b[:n], nil
}

func (j *jsonReader) badBase64() error {
	return j.bad("it takes base64 of the standard alphabet, padded")
}

func (j *jsonReader) boolean() (bool, error) {
	k := j.dec.PeekKind()
	if k == 'f' {
		k = 't'
	}
	if k != 't' {
		_, err := j.scalar('t', "true or false")
		return false, err
	}
	raw, err := j.dec.ReadValue()
	if err != nil {
		return false, j.malformed(err)
	}
	return string(raw) == "true", nil
}

const aWholeNumber = "a whole number"

func (j *jsonReader) uint64() (uint64, error) {
	raw, err := j.scalar('0', aWholeNumber)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return 0, j.bad("it takes a whole number from 0 to 2^64-1, without fraction or exponent")
	}
	return n, nil
}

func (j *jsonReader) int64() (int64, error) {
	raw, err := j.scalar('0', aWholeNumber)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, j.bad("it takes a whole number of 64 bits, without fraction or exponent")
	}
	return n, nil
}

// readInto returns a reader of one field into *to.
func readInto[T any](read func() (T, error), to *T) func() error {
	return func() error {
		v, err := read()
		*to = v
		return err
	}
}

// readFields reads the request's body, of at most MaxAdminBodyBytes, as one JSON
// object with the fields of set, and returns it. j reads what set is to read. No body
// is an empty object if optional.
func (x *exchange) readFields(optional bool, set func(j *jsonReader) map[string]func() error) (body []byte, err error) {
	body, err = x.readBody("body", MaxAdminBodyBytes)
	if err != nil {
		var e *kv.Error
		if errors.As(err, &e) && e.Code == kv.CodeTooLarge {
			e.Msg = "the body of this request may have 64 KiB"
		}
		return nil, err
	}
	if optional && len(body) == 0 {
		return body, nil
	}
	j := newJSONReader(body)
	if err := j.fields(set(j)); err != nil {
		return nil, err
	}
	return body, j.end()
}

var _ http.ResponseWriter = (*exchange)(nil)
