package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

// itemJSON is the JSON form of a key. Exactly one of each pair of a text and its
// base64 form is set.
type itemJSON struct {
	Key            *string     `json:"key,omitempty"`
	KeyBase64      []byte      `json:"key_base64,omitempty"`
	Value          *string     `json:"value,omitempty"`
	ValueBase64    []byte      `json:"value_base64,omitempty"`
	CreateRevision kv.Revision `json:"create_revision"`
	ModRevision    kv.Revision `json:"mod_revision"`
	Version        uint64      `json:"version"`
	ContentType    string      `json:"content_type,omitempty"`
	ExpiresAt      string      `json:"expires_at,omitempty"`
}

func newItemJSON(it *kv.Item) *itemJSON {
	if it == nil {
		return nil
	}
	j := &itemJSON{
		CreateRevision: it.CreateRevision, ModRevision: it.ModRevision, Version: it.Version,
		ContentType: it.ContentType, ExpiresAt: timeText(it.ExpiresAt),
	}
	if utf8.ValidString(it.Key) {
		j.Key = &it.Key
	} else {
		j.KeyBase64 = []byte(it.Key)
	}
	if utf8.Valid(it.Value) {
		v := string(it.Value)
		j.Value = &v
	} else {
		j.ValueBase64 = it.Value
	}
	return j
}

// timeText is a time as RFC 3339 in UTC with up to millisecond digits, empty for the
// zero time.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.999Z07:00")
}

// writeJSON answers with v and a line feed.
func (x *exchange) writeJSON(status int, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return x.writeBytes(status, "application/json", b.Bytes())
}

// object is a JSON object as read from a request, a raw value a field. Handlers take
// their fields out of it; what is left is unknown.
type object map[string]json.RawMessage

func badJSON(format string, args ...any) *kv.Error {
	return kv.Errorf(kv.CodeInvalidArgument, "the JSON body "+format, args...)
}

// parseObject reads one JSON object, strictly: UTF-8, no duplicate field, nothing
// after it. encoding/json alone would take the last of two fields, match their names
// whatever the case, and replace bad bytes.
func parseObject(data []byte) (object, error) {
	if !utf8.Valid(data) {
		return nil, badJSON("is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, badJSON("is not an object")
	}
	o := object{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, badJSON("is malformed")
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, badJSON("is malformed at field %s", quote(name))
		}
		if _, twice := o[name]; twice {
			return nil, badJSON("has field %s twice", quote(name))
		}
		o[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, badJSON("is malformed or cut short")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, badJSON("is followed by something")
	}
	return o, nil
}

// take reads a field into v, a pointer, and removes it; it reports whether the field
// was there. null is no value of any field.
func (o object) take(name string, v any) (bool, error) {
	raw, ok := o[name]
	if !ok {
		return false, nil
	}
	delete(o, name)
	if string(raw) == "null" {
		return false, badJSON("has null for field %s; leave it out instead", quote(name))
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, badJSON("has a bad value for field %s: it takes %s", quote(name), kindOf(v))
	}
	return true, nil
}

func kindOf(v any) string {
	switch v.(type) {
	case *string:
		return "text"
	case *bool:
		return "true or false"
	}
	return "a whole number, not negative"
}

// done reports the fields that nobody took.
func (o object) done(known ...string) error {
	for name := range o {
		return badJSON("has an unknown field %s; it takes %s", quote(name), strings.Join(known, ", "))
	}
	return nil
}

// readObject reads the request's body as a JSON object of at most MaxAdminBodyBytes.
// No body is an empty object if optional.
func (x *exchange) readObject(optional bool) (object, []byte, error) {
	body, err := x.readBody("body", MaxAdminBodyBytes)
	if err != nil {
		var e *kv.Error
		if errors.As(err, &e) && e.Code == kv.CodeTooLarge {
			e.Msg = "the body of this request may have 64 KiB"
		}
		return nil, nil, err
	}
	if optional && len(body) == 0 {
		return object{}, nil, nil
	}
	o, err := parseObject(body)
	return o, body, err
}

var _ http.ResponseWriter = (*exchange)(nil)
