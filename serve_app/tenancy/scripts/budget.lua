-- Budgets: tokens and money that a key or tenant may use in a calendar day and in a calendar month, UTC.
-- Spent, in the meter record: dno dsp dmo (the day, its tokens and its micro-units so far), mno msp mmo
-- (the month). Counted with or without a budget, so that one set later knows what came before. A
-- request counts where it was admitted: settled on a later day it changes nothing there.

local TODAY = divide_down(now, 86400000000)

-- Months since March of the year 0, from days since 1970-01-01.
local function month_of(day)
  local shifted = day + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096))
    / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return (era * 400 + year) * 12 + math.floor((5 * of_year + 2) / 153)
end

-- name, number of the period, the meter's fields (which one was counted last, what it took), and the
-- budgets' names
local PERIODS = {
  {name = 'day', number = TODAY, of = function(day) return day end,
    last = 'dno', tokens = 'dsp', money = 'dmo', most = {tokens = 'daytok', money = 'daymoney'}},
  {name = 'month', number = month_of(TODAY), of = month_of,
    last = 'mno', tokens = 'msp', money = 'mmo', most = {tokens = 'montok', money = 'monmoney'}},
}

local function spent_in(scope, period, unit)
  return scope.m[period.last] == period.number and scope.m[period[unit]] or 0
end

-- The refusal of a cost (tokens, and money with its currency) that a budget has no room for, or nil.
local function refused_budget(scopes, cost)
  for _, scope in ipairs(scopes) do
    for _, period in ipairs(PERIODS) do
      for _, unit in ipairs({'tokens', 'money'}) do
        local budget, spent = scope.may[period.most[unit]], spent_in(scope, period, unit)
        if budget > 0 and spent + cost[unit] > budget then
          local of = unit == 'money' and cost.currency or unit
          return add_figures({'quota', period.name, scope.kind, of, cost[unit], budget, spent}, scopes)
        end
      end
    end
  end
end

-- Adds tokens and money (negative: a refund) of a request that was admitted on `day`.
local function spend(scope, tokens, money, day)
  for _, period in ipairs(PERIODS) do
    if period.of(day) == period.number then
      scope.m[period.tokens] = math.max(0, spent_in(scope, period, 'tokens') + tokens)
      scope.m[period.money] = math.max(0, spent_in(scope, period, 'money') + money)
      scope.m[period.last] = period.number
    end
  end
end
