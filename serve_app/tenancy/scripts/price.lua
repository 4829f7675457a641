-- Prices: what a request costs, in micro-units (millionths of the currency's unit).
-- A price is `<currency> <input> <cached input> <output>`, in micro-units for a million tokens, each at
-- most 10^9; '' is free. Whole millions of tokens and the rest are multiplied apart, so that nothing
-- passes 2^53; the sum is rounded once, half up.

local MILLION = 1000000

-- The cost and its currency. Cached tokens are among the input.
local function cost_of(price, input, cached, output)
  local currency, fresh, kept, made = string.match(price, '^(%u+) (%d+) (%d+) (%d+)$')
  if not currency then return 0, '' end
  local whole, rest = 0, 0
  local function add(tokens, per_million)
    local millions = divide_down(tokens, MILLION)
    whole = whole + millions * per_million
    rest = rest + (tokens - millions * MILLION) * per_million
  end
  add(math.max(0, input - cached), tonumber(fresh))
  add(cached, tonumber(kept))
  add(output, tonumber(made))
  return whole + divide_down(rest + MILLION / 2, MILLION), currency
end
